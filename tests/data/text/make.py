"""The fixtures of the text readers, written by Apache Arrow and by zstd's own binding.

    pip install pyarrow zstandard
    python make.py            # rewrites the files beside this one
    printf '{"text": "by the tool"}\\n\\n{"text": "second"}\\n' | zstd --ultra -19 --long=31 -c > long.jsonl.zst   # the command line tool
"""
import json, os
import pyarrow as pa, pyarrow.parquet as pq, zstandard

HERE = os.path.dirname(os.path.abspath(__file__))
DOCUMENTS = ["First.", None, "", "Zweites: äöü 十二 ☃", "line one\nline two", "First.", None, "the last"]

def parquet(name, table, **options):
    pq.write_table(table, os.path.join(HERE, name + ".parquet"), **options)

ids = pa.array(range(len(DOCUMENTS)), pa.int64())
text = pa.array(DOCUMENTS, pa.string())
parquet("snappy", pa.table({"id": ids, "text": text}), row_group_size=3, compression="snappy")
parquet("zstd", pa.table({"text": text.cast(pa.large_string()), "id": ids}), compression="zstd", use_dictionary=False, data_page_version="2.0")
parquet("gzip", pa.table({"text": text}), compression="gzip", column_encoding={"text": "DELTA_BYTE_ARRAY"}, use_dictionary=False)
required = pa.schema([pa.field("text", pa.string(), nullable=False)])
parquet("required", pa.table({"text": pa.array([f"row {i}" for i in range(200)])}, schema=required), row_group_size=150)
parquet("no_text", pa.table({"id": ids, "content": text}))
parquet("numbers", pa.table({"text": ids}))
parquet("lists", pa.table({"text": pa.array([["a"], ["b"]])}))

lines = [json.dumps({"id": i, "text": d}, ensure_ascii=i % 2 == 0) + "\n" for i, d in enumerate(DOCUMENTS) if d is not None]
compress = zstandard.ZstdCompressor(level=19, write_checksum=True).compress
with open(os.path.join(HERE, "frames.jsonl.zst"), "wb") as f:  # two frames, as zstd -c a b makes them; a line goes across
    f.write(compress("".join(lines)[:50].encode()) + compress("".join(lines)[50:].encode()))
