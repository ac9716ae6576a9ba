"""Reads the directory of the example's slave (or master) in place, with nothing but Python's lmdb package.

    pip install lmdb
    python3 examples/existing_lmdb/read.py DIR

Prints customers and orders as the example does; fails if there is nothing to print.
"""

import json
import struct
import sys

import lmdb

env = lmdb.open(sys.argv[1], max_dbs=16, readonly=True, lock=True)
customers = env.open_db(b"customers", create=False)
orders = env.open_db(b"orders", create=False, integerkey=True)
portraits = env.open_db(b"portraits", create=False)

count = 0
with env.begin() as txn:
    for name, value in txn.cursor(db=customers):
        customer = json.loads(value)
        portrait = txn.get(name, db=portraits) or b""
        print(f"{name.decode()} <{customer['email']}>, {customer['discount']}, a portrait of {len(portrait)} bytes")
        count += 1
    for key, value in txn.cursor(db=orders):
        (number,) = struct.unpack("@Q", key)
        print(f"order {number}: {value.decode()}")
        count += 1
if count == 0:
    sys.exit("there is nothing in it")
