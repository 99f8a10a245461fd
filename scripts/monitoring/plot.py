#!/usr/bin/env python3
"""Runs a soak under a real Prometheus, and draws every panel of the dashboard over it, as SVG.

    ./scripts/monitoring/plot.py [MINUTES (12)] [SEED] > docs/dashboard.svg

Prometheus (`./scripts/install.sh tests` installs it) scrapes the nodes' metrics.sock through a
bridge on loopback. The exit code is 0 only if every panel has data. That the soak has met its goals
is not asked: it ends with its own report on standard error.
"""

import argparse
import glob
import html
import http.server
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
BRIDGE, PROMETHEUS = 19441, 19090
STEP = 5
WIDTH, HEIGHT, COLUMNS = 400, 170, 3
COLOURS = ["#3366cc", "#dc3912", "#109618", "#ff9900", "#990099", "#0099c6", "#dd4477", "#66aa00"]
# With a cluster that refuses nothing, this panel is empty.
MAY_BE_EMPTY = "Refused"


def sockets(soak):
    """The metrics sockets of the soak's nodes by name. The soak may have mounts of its own."""
    found = {}
    for folder in glob.glob("/proc/[0-9]*"):
        try:
            argv = pathlib.Path(folder, "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "run" not in argv or "--dir" not in argv[:-1]:
            continue
        directory = argv[argv.index("--dir") + 1]
        if f"rustbalance-testnet-{soak.pid}-" in directory:
            name = pathlib.Path(directory).parent.name.split("-")[-1]
            found[name] = f"{folder}/root{directory}/metrics.sock"
    return found


class Bridge(http.server.BaseHTTPRequestHandler):
    """Passes `GET /NODE` on to the node's socket."""

    soak = None

    def do_GET(self):
        path = sockets(self.soak).get(self.path.strip("/"))
        try:
            with socket.socket(socket.AF_UNIX) as node:
                node.settimeout(2)
                node.connect(path or "")
                node.sendall(b"GET /metrics HTTP/1.0\r\nHost: node\r\n\r\n")
                answer = b"".join(iter(lambda: node.recv(65536), b""))
        except OSError:
            return self.send_error(502)
        head, _, body = answer.partition(b"\r\n\r\n")
        kind = next((l.split(b":", 1)[1].strip() for l in head.split(b"\r\n") if l.lower().startswith(b"content-type:")), b"text/plain")
        self.send_response(200)
        self.send_header("Content-Type", kind.decode())
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    """Says nothing of a Prometheus that does not wait for an answer."""

    def handle_error(self, *_):
        pass


def start_prometheus(folder):
    nodes = ["alpha", "beta", "gamma", "delta", "epsilon"]
    targets = [
        {"targets": [f"127.0.0.1:{BRIDGE}"], "labels": {"__metrics_path__": f"/{name}", "instance": name}}
        for name in nodes
    ]
    config = {
        "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "5s"},
        "rule_files": [str(HERE / "rules.yml")],
        "scrape_configs": [{"job_name": "rustbalance", "static_configs": targets}],
    }
    path = pathlib.Path(folder, "prometheus.yml")
    # YAML includes JSON.
    path.write_text(json.dumps(config))
    return subprocess.Popen(
        ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{PROMETHEUS}"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )


def ask(expression, start, end):
    """The series that an expression gives over the time, with the names of their lines."""
    fields = {"query": expression, "start": start, "end": end, "step": STEP}
    url = f"http://127.0.0.1:{PROMETHEUS}/api/v1/query_range?{urllib.parse.urlencode(fields)}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)["data"]["result"]


def panel_series(panel, start, end):
    series = []
    for target in panel["targets"]:
        expression = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "30s")
        expression = expression.replace("$__range", "60s").replace("$__interval", "5s")
        for found in ask(expression, start, end):
            labels = {name: value for name, value in found["metric"].items() if name not in ("job", "__name__")}
            name = " ".join(labels.values()) or target.get("legendFormat") or ""
            points = [(float(at), float(value)) for at, value in found["values"]]
            series.append((name, [(at, value) for at, value in points if value == value and abs(value) != float("inf")]))
    return [(name, points) for name, points in series if points]


def short(value):
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def draw(panel, series, start, end, left, top):
    """One panel as SVG: the title, lines over the time, least and greatest value, and their names."""
    text = [f'<g transform="translate({left},{top})"><text class="t" x="0" y="14">{html.escape(panel["title"])}</text>']
    inner = (44, 22, WIDTH - 56, HEIGHT - 62)
    x0, y0, width, height = inner
    text.append(f'<rect x="{x0}" y="{y0}" width="{width}" height="{height}"/>')
    values = [value for _, points in series for _, value in points] or [0.0]
    least, most = min(0.0, *values), max(values + [1e-9])
    for label, y in ((most, y0 + 9), (least, y0 + height)):
        text.append(f'<text class="n" x="{x0 - 4}" y="{y}" text-anchor="end">{short(label)}</text>')
    for index, (_, points) in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        steps, before = [], None
        for at, value in points:
            x = x0 + (at - start) / (end - start) * width
            y = y0 + height - (value - least) / (most - least) * height
            # A gap, where the node did not run.
            steps.append(f'{"L" if before and at - before <= 2 * STEP else "M"}{x:.1f} {y:.1f}')
            before = at
        text.append(f'<path stroke="{colour}" d="{"".join(steps)}"/>')
    x, y = x0, y0 + height + 14
    for index, (name, _) in enumerate(series[:10]):
        name = name if len(name) <= 26 else name[:24] + ".."
        need = 14 + 5.6 * len(name)
        if x + need > WIDTH:
            x, y = x0, y + 12
        if name and y < HEIGHT:
            text.append(f'<text class="n" x="{x}" y="{y}" fill="{COLOURS[index % len(COLOURS)]}">{html.escape(name)}</text>')
            x += need
    return "\n".join(text + ["</g>"])


def picture(panels, start, end):
    rows = -(-len(panels) // COLUMNS)
    size = (COLUMNS * WIDTH + 20, rows * HEIGHT + 40)
    style = (
        "text{font-family:sans-serif}.t{font-size:13px;font-weight:bold}.n{font-size:9px}"
        "rect{fill:#f8f8f8;stroke:#ccc}path{fill:none;stroke-width:1.2}"
    )
    minutes = (end - start) / 60
    head = f"The dashboard over a soak of {minutes:.0f} minutes: five nodes, one fault after another (scripts/monitoring/plot.py)"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" viewBox="0 0 {size[0]} {size[1]}">',
        f'<style>{style}</style><rect width="100%" height="100%" style="fill:#fff;stroke:none"/>',
        f'<text class="t" x="10" y="20">{head}</text>',
    ]
    for index, (panel, series) in enumerate(panels):
        left, top = 10 + index % COLUMNS * WIDTH, 34 + index // COLUMNS * HEIGHT
        parts.append(draw(panel, series, start, end, left, top))
    return "\n".join(parts + ["</svg>"])


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("minutes", nargs="?", default="12")
    options.add_argument("seed", nargs="?")
    given = options.parse_args()
    command = [str(HERE.parent / "soak.sh"), given.minutes] + ([given.seed] if given.seed else [])
    if not shutil.which("prometheus"):
        sys.exit("prometheus is missing: ./scripts/install.sh tests installs it")
    soak = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    Bridge.soak = soak
    bridge = Server(("127.0.0.1", BRIDGE), Bridge)
    threading.Thread(target=bridge.serve_forever, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="rustbalance-plot-") as folder:
        prometheus = start_prometheus(folder)
        try:
            while not sockets(soak):
                if soak.poll() is not None:
                    sys.exit("the soak has ended before a node ran")
                time.sleep(1)
            start = time.time()
            end = start
            while soak.poll() is None:
                time.sleep(2)
                end = time.time() if sockets(soak) else end
            panels = json.loads((HERE / "dashboard.json").read_text())["panels"]
            shown = [(panel, panel_series(panel, start, end)) for panel in panels if panel.get("targets")]
        finally:
            for process in (soak, prometheus):
                process.terminate()
                process.wait()
    print(picture(shown, start, end))
    empty = [panel["title"] for panel, series in shown if not series and not panel["title"].startswith(MAY_BE_EMPTY)]
    if empty:
        sys.exit(f"without data: {', '.join(empty)}")


if __name__ == "__main__":
    main()
