"""What of a run the logs and the checkpoint can hold: its options, and the figures of an epoch.
Without this, an option or a metric of the learner's own, such as a list or an array, ends the training."""
from numbers import Real


def options(args):
    """Return the options that matter for the result, a dict: None, a Path, or a value of another such kind, as text."""
    kept = {key: value for key, value in vars(args).items() if key not in ("name", "restart")}
    return {key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in kept.items()}


def numbers(logs):
    """Return the metrics of an epoch that are numbers, a dict; a learner's own may be arrays or texts."""
    return {key: float(value) for key, value in logs.items() if isinstance(value, Real)}
