"""A fuzzer with mistakes planted in it: by a case's number it answers, refuses, crashes, hangs or kills its process."""

import os
import random
import time

from lit_align.errors import UserError

SECONDS = 2.0
CRASH, HANG, SLEEP, DIE, MEMORY = 5, 9, 12, 15, 18


def one(rng: random.Random) -> str | None:
    number = next(case for case in range(30) if random.Random(case).getstate() == rng.getstate())
    if number % 4 == 1 and number not in (CRASH, HANG):
        raise UserError("no")
    if number % 4 == 3 and number != DIE:
        return "refused"
    if number == CRASH:
        raise KeyError("planted")
    if number == HANG:
        while True:
            pass
    if number == SLEEP:
        time.sleep(600)
    if number == DIE:
        os.abort()
    if number == MEMORY:
        bytearray(1 << 40)
    return None
