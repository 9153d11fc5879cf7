"""HTML pages that are one file each: templates, one stylesheet, no script and nothing from outside."""
