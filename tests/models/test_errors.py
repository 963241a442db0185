"""What every script does with errors, signals and its streams."""
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

HEAD = ('import os, sys, time\n'
        'import command_line\n'
        'from models.utils.errors import InputError, report_errors\n'
        'with report_errors():\n    ')
OUT, ERR = ">&-", "2>&-"


def run(body, redirect='', **variables):
    """Run a script's body, with a shell's redirections."""
    return subprocess.run(
        ['sh', '-c', f'exec "$@" {redirect}', 'sh', sys.executable, '-c',
         HEAD + body], cwd=ROOT, capture_output=True, check=False, timeout=60,
        env={**os.environ, **variables})


@pytest.mark.parametrize(('encoding', 'shown'), [
    ('ascii', br'\xfc \udcfc \u6f22'), ('latin-1', b'\xfc \\udcfc \\u6f22'),
    ('utf-8', b'\xc3\xbc \\udcfc \xe6\xbc\xa2')])
def test_what_a_stream_cannot_show(encoding, shown):
    result = run(r"print('\xfc \udcfc \u6f22')", PYTHONIOENCODING=encoding)
    assert result.stdout == shown + b'\n'
    assert (result.returncode, result.stderr) == (0, b'')


@pytest.mark.parametrize('redirect', [
    OUT, ERR, f'{OUT} {ERR}', f'<&- {OUT} {ERR}', '>/dev/full 2>/dev/full'])
def test_streams_that_are_closed_or_full(tmp_path, redirect):
    """The work is done, and no file takes the number of a closed stream."""
    result = run(
        f"with open({str(tmp_path / 'a')!r}, 'w') as file:\n"
        "        print('to stdout', flush=True)\n"
        "        print('to stderr', file=sys.stderr, flush=True)\n"
        "        os.write(1, b'low level'); os.write(2, b'low level')\n"
        "        print('done', file=file)", redirect)
    assert result.returncode == 0
    assert (tmp_path / 'a').read_text() == 'done\n'
    result = run("raise InputError('no')", redirect)
    assert result.returncode == 1
    assert result.stderr == (b'error: no\n' if redirect == OUT else b'')


def test_a_full_disk_for_stdout_is_said():
    result = run("print('x'); print('y')", '>/dev/full')
    assert result.returncode == 0
    assert result.stderr == (
        b'warning: standard output: No space left on device\n')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM,
                                    signal.SIGHUP])
def test_signals(tmp_path, number):
    """The first is heeded; others do not disturb the tidying up."""
    path = tmp_path / 'a'
    with subprocess.Popen(
            [sys.executable, '-c', HEAD + (
                'try:\n        print(1, flush=True); time.sleep(60)\n'
                '    finally:\n        print(2, flush=True); time.sleep(0.5)\n'
                f"        open({str(path)!r}, 'w').close()")],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, preexec_fn=lambda: signal.signal(  # noqa: PLW1509
                signal.SIGINT, signal.SIG_DFL)) as process:
        process.stdout.readline()
        process.send_signal(number)
        process.stdout.readline()
        for each in signal.SIGTERM, signal.SIGHUP:
            if number != signal.SIGINT:
                process.send_signal(each)
        _, said = process.communicate(timeout=30)
    assert said == 'interrupted\n'
    assert process.returncode == 128 + number
    assert path.exists()


def test_nohup_is_kept():
    process = subprocess.Popen(
        ['nohup', sys.executable, '-c', HEAD + 'print(1, flush=True)\n'
         '    time.sleep(1)'], cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL)
    process.stdout.readline()
    begun = time.monotonic()
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert time.monotonic() - begun > 0.5
