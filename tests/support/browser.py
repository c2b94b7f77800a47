"""A headless Chromium, driven through its DevTools protocol."""

import contextlib
import itertools
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from launching import end_family
from websockets.sync.client import ClientConnection, connect

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_ANSWER_S = 60.0


@dataclass
class Page:
    """One tab. What a person would find in its console, and every address that it asked for, is kept."""

    _connection: ClientConnection
    _session: str
    _numbers: "itertools.count[int]"
    complaints: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._connection.send(
            json.dumps({"id": number, "sessionId": self._session, "method": method, "params": params})
        )
        give_up = time.monotonic() + _ANSWER_S
        while True:
            message = json.loads(self._connection.recv(timeout=max(0.0, give_up - time.monotonic())))
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return dict(message["result"])
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.complaints.append(params["exceptionDetails"].get("exception", {}).get("description", "exception"))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning"):
                self.complaints.append(str([argument.get("value") for argument in params["args"]]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            case "Network.requestWillBeSent":
                self.addresses.append(params["request"]["url"])

    def look(self, *, width: int, height: int = 900, theme: str = "light") -> None:
        """The size of the window, and which theme its user likes."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition: str, *, timeout_s: float = 30.0) -> Any:
        """The value of a condition in JavaScript as soon as it is true; the page looks after each of its frames."""
        script = f"""new Promise((resolve, reject) => {{
            const end = performance.now() + {1000 * timeout_s};
            const look = () => {{
                let value = null;
                try {{ value = ({condition}); }} catch {{ /* not there yet */ }}
                if (value) resolve(value);
                else if (performance.now() > end) reject(new Error("in vain"));
                else setTimeout(look, 30);
            }};
            look();
        }})"""
        return self.evaluate(script)

    def press(self, key: str) -> None:
        codes = {
            "Tab": 9,
            "Enter": 13,
            "Escape": 27,
            "ArrowLeft": 37,
            "ArrowRight": 39,
            "ArrowDown": 40,
            "/": 191,
            "+": 187,
        }
        named = {"key": key, "windowsVirtualKeyCode": codes.get(key) or ord(key.upper())}
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **named, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def point(self, x: float, y: float) -> None:
        """Move the mouse there; CSS pixels from the upper left corner of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def drag(self, x: float, to_x: float, y: float) -> None:
        """Drag the mouse sideways."""
        self.point(x, y)
        button: dict[str, Any] = {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **button)
        for share in (0.3, 0.6, 1.0):
            place = x + share * (to_x - x)
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=place, y=y, button="left", buttons=1)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=to_x, y=y, **button)

    def double_click(self, x: float, y: float) -> None:
        for count in (1, 2):
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=count)

    def box(self, element: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element in the window, scrolled into view."""
        self.evaluate(f"{element}.scrollIntoView({{block: 'center'}})")
        rect = f"(({{left, top, width, height}}) => [left, top, width, height])({element}.getBoundingClientRect())"
        left, top, width, height = self.evaluate(rect)
        return left, top, width, height


@contextlib.contextmanager
def browser_page() -> Iterator[Page]:
    """A tab in a browser of its own, which ends with it; the test is skipped where no Chromium is installed."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("no Chromium: apt install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            *(program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--no-first-run", "--disable-extensions", "--disable-background-networking"),
            *("--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"),
        ]
        process = subprocess.Popen(command, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            assert process.stderr is not None
            address = next(filter(None, (re.search(r"ws://\S+", line) for line in process.stderr)))[0]
            with connect(address, max_size=None, ping_interval=None) as connection:
                numbers = itertools.count(1)
                yield _new_page(connection, numbers)
        finally:
            end_family(process)


def _new_page(connection: ClientConnection, numbers: "itertools.count[int]") -> Page:
    def call(method: str, **params: Any) -> dict[str, Any]:
        number = next(numbers)
        connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while (message := json.loads(connection.recv(timeout=_ANSWER_S))).get("id") != number:
            pass
        return dict(message["result"])

    target = call("Target.createTarget", url="about:blank")["targetId"]
    session = call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    page = Page(connection, session, numbers)
    for domain in ("Page", "Runtime", "Log", "Network"):
        page.call(f"{domain}.enable")
    return page
