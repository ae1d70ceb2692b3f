"""The files of a run, in a local folder and in a bucket."""

from bloodjax.io import bucket_urls, buckets

STEP = "checkpoints/7"
RUN = {
    "metrics.jsonl": b"{}\n",
    f"{STEP}/state/d/1": b"state",
    f"{STEP}/progress/metadata": b"{}",
    f"{STEP}/checksums.json": b"sums",
    "config.json": b"{}",
    "report/index.html": b"report",
}


def fill(folder, content=RUN):
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def content_of(url):
    names = buckets.list_files(f"{url}/")
    return {name: buckets.read_bytes(bucket_urls.join(url, name)) for name in names}
