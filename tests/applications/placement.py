"""Where rows stay when a second shard comes: old ones where they are, new ones in the bucket of their id."""

from zlib import crc32


def keep_old_rows(key, buckets):
    """Old keys stay in the lower half of the buckets; ids made by the pipeline go to the bucket that they carry."""
    number = int(key)
    if 2**49 <= number < 2**53:
        return (number & 1023) % buckets
    return crc32(b"%d" % number) % (buckets // 2)
