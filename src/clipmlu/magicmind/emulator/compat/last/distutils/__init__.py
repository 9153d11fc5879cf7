"""What public scripts for the SDK use of the standard library's ``distutils``, which Python 3.12 removed."""
