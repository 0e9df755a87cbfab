"""Package URLs of container images (purl specification, type ``docker`` and ``oci``), as BuildKit writes them into attestations.

Owns the text; resolves nothing.
"""

from __future__ import annotations

from urllib.parse import quote, quote_plus

from pybuild.layers.descriptor import Platform
from pybuild.layers.references import Reference

from .platforms import format_platform, normalize_platform

_PATH_SAFE = "$&+=:@"
"""What Go's ``url.PathEscape`` leaves as it is, besides letters, digits and ``-_.~``."""


def image_purl(reference: str, *, platform: Platform | None = None, kind: str = "docker") -> str:
    """``pkg:docker/busybox@latest?platform=linux%2Famd64`` for an image name of any form. A digest in the name becomes a qualifier; a name
    with neither tag nor digest means ``latest``. Raises InvalidReference."""
    name = Reference.parse(reference).with_default_tag()
    qualifiers = []
    if name.digest:
        qualifiers.append(("digest", str(name.digest)))
    if platform is not None:
        qualifiers.append(("platform", format_platform(normalize_platform(platform))))
    path = "/".join(quote_plus(part, safe="") for part in name.familiar_name.split("/"))
    version = f"@{quote(name.tag, safe=_PATH_SAFE)}" if name.tag else ""
    options = "&".join(f"{key}={quote(value, safe=_PATH_SAFE)}" for key, value in qualifiers)
    return f"pkg:{kind}/{path}{version}" + (f"?{options}" if options else "")
