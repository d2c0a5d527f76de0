"""The exploration page: a folder of facts in, a page that opens from disk out."""
