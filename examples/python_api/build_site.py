"""Builds an image of a small web site from Python, without a Dockerfile.

    python examples/python_api/build_site.py [TAG]

The pages are made in one image and served from another; a second run takes every step from the cache. The base image ``busybox`` comes from the
local store or from its registry.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pybuild

HERE = Path(__file__).parent


def pages(languages: list[str]) -> pybuild.Image:
    """An image with a page for each language: what would be a stage of a Dockerfile, here with a loop."""
    built = pybuild.image("busybox").named("pages").copy("site/page.html", "/in/page.html").workdir("/out")
    for language in languages:
        built = built.run(f"sed s/LANGUAGE/{language}/ /in/page.html > {language}.html", network="none")
    return built


def site(languages: list[str]) -> pybuild.Image:
    """The image that serves the pages."""
    return (
        pybuild.image("busybox")
        .copy("/out/*.html", "/var/www/", from_=pages(languages), owner="1000:1000")
        .write("/etc/httpd.conf", "I:en.html\n")
        .env(LANGUAGES=",".join(languages))
        .user("1000:1000")
        .expose(8080)
        .cmd("httpd", "-f", "-p", "8080", "-c", "/etc/httpd.conf", "-h", "/var/www")
    )


def main() -> None:
    tag = sys.argv[1] if len(sys.argv) > 1 else "site:latest"
    try:
        result = pybuild.build(site(["en", "de", "fr"]), directory=HERE, tags=tag, progress="auto")
    except pybuild.PybuildError as error:
        sys.exit(f"ERROR: {error}")
    print(f"{tag} is {result.image_id}")


if __name__ == "__main__":
    main()
