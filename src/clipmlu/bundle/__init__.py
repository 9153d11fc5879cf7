"""Bundles: what their manifest says, how they are opened, verified and published."""
