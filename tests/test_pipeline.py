"""The input pipeline ends when the program wants it to; how soon is not asserted, since that is a matter of luck."""


def test_no_pipeline_is_tuned(load):
    """Neither those of train.py nor what the pair makes of them."""
    from support import recipe
    ds_train, ds_test, info = load()
    for dataset in ds_train, ds_test, recipe.augment(ds_train), ds_train.skip(3), ds_test.shuffle(7):
        assert dataset.options().autotune.enabled is False
