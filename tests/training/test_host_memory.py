import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from vlatrack.training.host_memory import keep_freed_memory

def faults_of_twenty_megabytes():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(20 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults_of_twenty_megabytes()
keep_freed_memory()
faults_of_twenty_megabytes()
print(first, faults_of_twenty_megabytes())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    output = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    before, after = map(int, output.stdout.split())
    assert before > 1000
    assert after < before / 20
