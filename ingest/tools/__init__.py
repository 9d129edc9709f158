"""What can be done with a finished shard set: ``stats``, ``verify``, ``dedup``, ``exclude``, ``show``.

They return; a CLI prints.
"""
