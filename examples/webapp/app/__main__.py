"""A web application with one page: what the container sees of itself."""

import argparse
import json
import os
import pathlib
import platform
import sys
import urllib.request

import bottle

STATIC = pathlib.Path("static")
app = bottle.Bottle()

PAGE = """<!doctype html><title>webapp</title><link rel="stylesheet" href="/static/{{stylesheet}}">
<h1>Hello from a container</h1><table>
% for name, value in facts.items():
<tr><th>{{name}}</th><td>{{value}}</td></tr>
% end
</table>"""


def facts():
    """What the process knows of its surroundings."""
    return {
        "user": os.getuid(),
        "process": os.getpid(),
        "host name": platform.node(),
        "python": platform.python_version(),
        "bottle": bottle.__version__,
        "directory": os.getcwd(),
    }


@app.get("/")
def index():
    stylesheet = json.loads((STATIC / "manifest.json").read_text())["stylesheet"]
    return bottle.template(PAGE, facts=facts(), stylesheet=stylesheet)


@app.get("/facts.json")
def facts_json():
    return facts()


@app.get("/static/<name:path>")
def static(name):
    return bottle.static_file(name, root=str(STATIC))


def main():
    parser = argparse.ArgumentParser(prog="webapp")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--probe", action="store_true", help="ask a running instance whether it is well")
    parser.add_argument("--once", action="store_true", help="answer one request in this process and print the page")
    options = parser.parse_args()
    if options.probe:
        urllib.request.urlopen(f"http://127.0.0.1:{options.port}/facts.json", timeout=3)
    elif options.once:
        environ = {
            "PATH_INFO": "/",
            "REQUEST_METHOD": "GET",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "wsgi.errors": sys.stderr,
        }
        print(b"".join(app.wsgi(environ, lambda status, headers, exc_info=None: print(status))).decode())
    else:
        bottle.run(app, host="127.0.0.1", port=options.port, quiet=True)


if __name__ == "__main__":
    main()
