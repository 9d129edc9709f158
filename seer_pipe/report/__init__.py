"""What a person looks at: the report of a run, and the atlas of a shard set."""
