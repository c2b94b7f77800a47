"""A real PostgreSQL on a Unix socket, where Debian's package, or another one on PATH, is installed."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from mlflow_server import wait_until

FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


def find_programs() -> Path | None:
    """The folder of `initdb` and `postgres`; None if there is none."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve()] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


class PostgresServer:
    """Use as `with PostgresServer(programs) as server:`. Its files lie in a folder of their own: PostgreSQL does not
    run as root, and another user cannot enter the folders of pytest."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="vlatrack-postgres-"))
        self._as: dict[str, Any] = {"cwd": self._folder}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
            self._as |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """For SQLAlchemy, with the name of the driver: its default is another one since 2.1."""
        return f"postgresql+psycopg2://tester@/postgres?host={self._folder}"

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        import psycopg2  # absent where this server is never used

        connection = psycopg2.connect(dbname="postgres", user="tester", host=str(self._folder))
        try:
            with connection.cursor() as cursor:
                cursor.execute(query)
                return cursor.fetchall()
        finally:
            connection.close()

    def __enter__(self) -> "PostgresServer":
        data = self._folder / "data"
        initdb = [
            self._programs / "initdb",
            "-D",
            data,
            "-U",
            "tester",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "-N",
        ]
        try:
            subprocess.run(initdb, check=True, capture_output=True, **self._as)
            options = [f"unix_socket_directories={self._folder}", "listen_addresses=", *FAST]
            command = [self._programs / "postgres", "-D", data, *(part for o in options for part in ("-c", o))]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            self._process = subprocess.Popen(command, **quiet, **self._as)
            wait_until(self._answers, "PostgreSQL answers")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _answers(self) -> bool:
        import psycopg2

        try:
            return self.rows("select 1") == [(1,)]
        except psycopg2.OperationalError:
            return False

    def _end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._folder)
