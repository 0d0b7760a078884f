import pytest

pytest.register_assert_rewrite("tests.cuda.comparison")  # explains its failures, and `--vacuous` sees its assertions
