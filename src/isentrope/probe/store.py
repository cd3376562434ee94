"""A measurement on disk: four Parquet tables, each with the provenance of its columns in its metadata, and `measure.json` beside them."""

import io
import json
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from isentrope.errors import UserError
from isentrope.files import write_bytes_atomic, write_json_atomic
from isentrope.probe.measure import Measurement

TABLES = ("tokens", "heads", "layers", "spectra")
PROVENANCE = b"isentrope.provenance"
"""The key of a Parquet file's metadata that the tape uses as well: JSON, from column to provenance."""


def prepare(out: Path) -> None:
    """Makes the folder, and tries whether it can be written to, before minutes of work.

    Raises UserError with the way out.
    """
    trial = out / ".isentrope-trial"
    try:
        out.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"")
        trial.unlink()
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"--out: {out} is a file, or lies under one. Give a folder, which is made where it is missing.") from error
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror or error}. Give a folder that you may write to.") from error


def save(found: Measurement, out: Path) -> list[Path]:
    """Writes tables and record into `out` and returns their paths; each file is the old one or the new one, never half."""
    paths = []
    for name in TABLES:
        frame: pl.DataFrame = getattr(found, name)
        known = {key.partition(".")[2]: value.to_dict() for key, value in found.provenance.items() if key.startswith(f"{name}.")}
        kept = {column: record for column, record in known.items() if column in frame.columns}
        paths.append(out / f"{name}.parquet")
        write_bytes_atomic(paths[-1], _parquet(frame, json.dumps(kept)))
    record = {
        "model": found.model, "source": found.source, **found.record, "prefix": found.prefix, "overlap": found.overlap, "predicted": len(found.tokens),
        "windows": [{"start": part.start, "stop": part.stop, "fresh": part.fresh} for part in found.windows], "missing": dict(found.missing),
        "provenance": {key: value.to_dict() for key, value in found.provenance.items()},
    }  # fmt: skip
    paths.append(out / "measure.json")
    write_json_atomic(paths[-1], record)
    return paths


def _parquet(frame: pl.DataFrame, provenance: str) -> bytes:
    table = frame.rechunk().to_arrow()
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", write_page_checksum=True, store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({PROVENANCE: provenance.encode()})
    return sink.getvalue()
