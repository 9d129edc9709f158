"""What can be asked of a finished shard set: ``stats``, ``verify``, ``dedup``, ``show``. They return; a CLI prints."""
