#!/usr/bin/env python3
"""Reads event files with the tensorboard package: check_events.py DIRECTORY [TAG=STEP:VALUE ...]

Prints every scalar; each TAG=STEP:VALUE must be among them (as float32). Exit 77: tensorboard is not installed.
"""
import struct
import sys

try:
    from tensorboard.backend.event_processing import event_accumulator
except ImportError:
    print("the tensorboard package is not installed")
    sys.exit(77)


def main():
    accumulator = event_accumulator.EventAccumulator(sys.argv[1], size_guidance={event_accumulator.SCALARS: 0})
    accumulator.Reload()
    found = {}
    for tag in accumulator.Tags()["scalars"]:
        for event in accumulator.Scalars(tag):
            found[(tag, event.step)] = event.value
            print(f"{tag} {event.step} {event.value!r}")
    if not found:
        sys.exit("no scalar was found in " + sys.argv[1])
    for expected in sys.argv[2:]:
        tag, _, point = expected.rpartition("=")
        step, _, value = point.partition(":")
        wanted = struct.unpack("f", struct.pack("f", float(value)))[0]
        if found.get((tag, int(step))) != wanted:
            sys.exit(f"{tag} at step {step} is {found.get((tag, int(step)))!r}, not {wanted!r}")


if __name__ == "__main__":
    main()
