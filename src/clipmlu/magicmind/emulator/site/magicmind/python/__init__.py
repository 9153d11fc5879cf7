"""Same layout as the vendor's package (api 1)."""
