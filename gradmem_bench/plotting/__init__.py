"""Pictures of records, as PNG and SVG."""
