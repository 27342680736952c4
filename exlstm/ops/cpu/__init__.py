"""Small C++ kernels for what is sequential (backend "cpu"), compiled at first use and cached."""
