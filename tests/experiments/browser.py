"""A real browser without a window, driven through its DevTools pipe by the standard library alone."""

import fcntl
import itertools
import json
import os
import shutil
import subprocess
import time

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LIMIT = 60  # seconds


class Browser:
    """One page; `errors` collects what its console or its script complained of."""

    def __init__(self, url, profile):
        ours, self.out = os.pipe()
        self.into, theirs = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
        high = [fcntl.fcntl(own, fcntl.F_DUPFD, 10) for own in (ours, theirs)]
        # The browser reads commands from descriptor 3 and writes to 4.
        script = f'exec "$0" "$@" 3<&{high[0]} 4>&{high[1]}'
        command = ["bash", "-c", script, str(PROGRAM), *options, f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(command, pass_fds=high, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for own in (ours, theirs, *high):
            os.close(own)
        os.set_blocking(self.into, False)
        self.numbers, self.rest, self.errors, self.session = itertools.count(1), b"", [], None
        try:
            page = self.send("Target.createTarget", url="about:blank")["targetId"]
            self.session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
            for part in ("Runtime", "Log", "Page"):
                self.send(f"{part}.enable")
            self.open(url)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.out)
        self.process.terminate()
        self.process.wait(LIMIT)
        os.close(self.into)

    def open(self, url):
        """Load a page and wait until its script has run."""
        self.send("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def send(self, method, **parameters):
        """A command's result."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def receive(self):
        """The next message; complaints are noted."""
        end = time.monotonic() + LIMIT
        while b"\0" not in self.rest:
            assert time.monotonic() < end, "the browser does not answer"
            try:
                self.rest += os.read(self.into, 1 << 20)
            except BlockingIOError:
                time.sleep(0.01)
        first, self.rest = self.rest.split(b"\0", 1)
        message = json.loads(first)
        method, said = message.get("method"), message.get("params", {})
        is_logged = method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning")
        if method == "Runtime.exceptionThrown" or is_logged:
            self.errors.append(said)
        return message

    def value(self, expression):
        """What an expression of JavaScript gives in the page."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression):
        """Until an expression is true."""
        end = time.monotonic() + LIMIT
        while not self.value(expression):
            assert time.monotonic() < end, expression
            time.sleep(0.02)

    def press(self, key, code):
        """A key, as from a keyboard."""
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)
