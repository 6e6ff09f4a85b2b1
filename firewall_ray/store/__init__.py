"""The datasets under ROOT on storage: begun, written a part at a time, compacted, joined and read."""
