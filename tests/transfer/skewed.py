"""Requests as a machine would sign them whose clock is wrong."""

from __future__ import annotations

import hashlib
import hmac
import re
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from tests.transfer.proxy import Rewrite
from tests.transfer.seaweed import ADMIN

_AUTHORIZATION = re.compile(r"Credential=[^/]+/\d{8}/([^,]+), ?SignedHeaders=([^,]+),")
_TIME = "%Y%m%dT%H%M%SZ"


def signed_at(offset: timedelta) -> Rewrite:
    """Sign each request anew (AWS Signature Version 4, as the admin), as if it were `offset` later."""

    def rewrite(method: str, path: str, headers: dict[str, str]) -> dict[str, str]:
        given = {name.lower(): value for name, value in headers.items()}
        found = _AUTHORIZATION.search(given["authorization"])
        assert found is not None, given["authorization"]
        rest, names = found[1], found[2]
        given["x-amz-date"] = (datetime.strptime(given["x-amz-date"], _TIME) + offset).strftime(_TIME)
        signature = _signature(method, path, given, rest, names)
        scope = f"{ADMIN[0]}/{given['x-amz-date'][:8]}/{rest}"
        given["authorization"] = f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={names}, Signature={signature}"
        return given

    return rewrite


def _signature(method: str, path: str, headers: dict[str, str], rest: str, names: str) -> str:
    parts = urlsplit(path)
    query = "&".join(sorted(one if "=" in one else f"{one}=" for one in parts.query.split("&") if one))
    lines = "".join(f"{name}:{headers[name].strip()}\n" for name in names.split(";"))
    request = "\n".join([method, parts.path, query, lines, names, headers["x-amz-content-sha256"]])
    date = headers["x-amz-date"]
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", date, f"{date[:8]}/{rest}", digest])
    key = f"AWS4{ADMIN[1]}".encode()
    for word in (date[:8], *rest.split("/")):
        key = hmac.digest(key, word.encode(), "sha256")
    return hmac.digest(key, text.encode(), "sha256").hex()
