"""Drawings of a report's figures, as SVG whose colours are those of the page that holds them."""
