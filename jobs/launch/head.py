"""How a driver ended, asked of the Ray head's job API: the one place where its exit code is kept.

`GET /api/jobs/<submission id>` answers with Ray's JobDetails (`status`, `driver_exit_code`). With RAY_AUTH_MODE=token
the head wants `Authorization: Bearer <token>`; the token is where Ray itself looks for it: RAY_AUTH_TOKEN, else the
file RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit

from jobs.launch.rayjob import DriverEnd

TIMEOUT_S = 5.0


class DashboardSilent(Exception):
    """The head did not tell. `final`: it would not tell later either."""

    def __init__(self, message: str, *, final: bool) -> None:
        super().__init__(message)
        self.final = final


def driver_end(address: str, job_id: str, token: str | None) -> DriverEnd:
    """`address`: host:port, as `status.dashboardURL` has it, or a URL. Raises DashboardSilent."""
    url = urlsplit(address if "://" in address else f"http://{address}")
    scheme = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = scheme(url.netloc, timeout=TIMEOUT_S)
    headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        connection.request("GET", f"{url.path.rstrip('/')}/api/jobs/{quote(job_id, safe='')}", headers=headers)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise DashboardSilent(f"{address}: {type(error).__name__}: {error}", final=False) from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        hint = "; is the token right?" if response.status in (401, 403) else ""
        raise DashboardSilent(f"{address}: HTTP {response.status}{hint}", final=400 <= response.status < 500)
    try:
        details = json.loads(body)
        return DriverEnd(status=details["status"], exit_code=details.get("driver_exit_code"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DashboardSilent(
            f"{address}: no job details in its answer ({type(error).__name__})", final=True
        ) from error


def token_from(environment: Mapping[str, str] = os.environ) -> str | None:
    """None: tokens are not in use, or there is none to be found."""
    if environment.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    if token := environment.get("RAY_AUTH_TOKEN"):
        return token.strip()
    file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return file.read_text().strip() if file.is_file() else None
