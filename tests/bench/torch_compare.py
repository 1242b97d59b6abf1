"""The networks of tests/bench/work.h here and in PyTorch, side by side: `make bench-torch PYTHON=...`

Three processes do the same work in turn (dt, eager, torch.compile, dt, ...), with as many threads and in the same precision; two of
them wait while the third one runs.  Printed are the medians, by how much dt is faster, and its peak of resident memory as a share
of theirs.  The peak is the whole process's since the work was set up, compiling and what Python has loaded included.
--cpu: the time that the process had a processor, for one thread on a machine that others use, too.

    B=build torch_compare.py [--threads N[,N]] [--dtype f32[,bf16]] [--rounds N] [--json FILE] [--cpu] [--no-compile] [NAME ...]
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
NAMES = ["lora", "full", "sample", "encode", "decode", "t5"]


class Server:
    def __init__(self, command, threads, cpu):
        self.cpu = cpu
        env = dict(os.environ, OMP_NUM_THREADS=str(threads), HF_HUB_OFFLINE="1", PYTHONWARNINGS="ignore")
        self.p = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        if not self.read().startswith("ready"):
            sys.exit("no answer from " + " ".join(command))

    def read(self):
        return self.p.stdout.readline()

    def ask(self, what):
        self.p.stdin.write(what + "\n")
        self.p.stdin.flush()
        return float(self.read())

    def run(self):
        before = self.worked()
        seconds = self.ask("run")
        return self.worked() - before if self.cpu else seconds

    def worked(self):
        """Seconds that the threads have spent on a processor."""
        total = 0
        for thread in os.listdir("/proc/%d/task" % self.p.pid):
            with open("/proc/%d/task/%s/schedstat" % (self.p.pid, thread)) as f:
                total += int(f.read().split()[0])
        return total * 1e-9

    def close(self):
        self.p.stdin.close()
        self.p.wait()


def spread(times):
    return "%.0f (%.0f..%.0f)" % tuple(1e3 * t for t in (statistics.median(times), min(times), max(times)))


def compare(name, dtype, threads, a):
    torch = [sys.executable, os.path.join(HERE, "torch_work.py"), "--dtype", dtype]
    commands = {"dt": [os.path.join(os.environ.get("B", "build"), "bench"), "-t", dtype, "-s", name],
                "eager": torch + [name]}
    if not a.no_compile:
        commands["compile"] = torch + ["--compile", name]
    servers = {k: Server(c, threads, a.cpu) for k, c in commands.items()}
    times = {k: [] for k in servers}
    for _ in range(a.rounds):
        for k, s in servers.items():
            times[k].append(s.run())
    row = {"work": name, "dtype": dtype, "threads": threads, "cpu": a.cpu, "seconds": times,
           "peak_mib": {k: s.ask("peak") / 1024 for k, s in servers.items()}}
    for s in servers.values():
        s.close()
    median = {k: statistics.median(t) for k, t in times.items()}
    for k in servers:
        if k != "dt":
            row["times_" + k] = median[k] / median["dt"]
            row["memory_of_" + k] = row["peak_mib"]["dt"] / row["peak_mib"][k]
    return row


def show(row):
    cells = ["%-6s %-4s %d" % (row["work"], row["dtype"], row["threads"])]
    cells += ["%-22s" % spread(t) for t in row["seconds"].values()]
    for k in row["seconds"]:
        if k != "dt":
            cells += ["%5.2fx" % row["times_" + k], "%5.2f" % row["memory_of_" + k]]
    cells += ["/".join("%.0f" % m for m in row["peak_mib"].values())]
    print("  ".join(cells), flush=True)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--threads", default="1,%d" % os.cpu_count())
    p.add_argument("--dtype", default="f32")
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--json", default=os.path.join(os.environ.get("B", "build"), "bench-torch.json"))
    p.add_argument("--cpu", action="store_true")
    p.add_argument("--no-compile", action="store_true")
    p.add_argument("names", nargs="*")
    a = p.parse_args()
    sides = ["dt", "eager"] + ([] if a.no_compile else ["compile"])
    cells = ["work   type n"] + ["%-22s" % (s + ", ms") for s in sides]
    for s in sides[1:]:
        cells += ["%6s" % s[:6], "  mem"]
    print("  ".join(cells + ["peak, MiB"]))
    rows = []
    for dtype in a.dtype.split(","):
        for threads in sorted({int(t) for t in a.threads.split(",")}):
            for name in a.names or NAMES:
                rows.append(compare(name, dtype, threads, a))
                show(rows[-1])
                with open(a.json, "w") as f:
                    json.dump({"date": time.strftime("%Y-%m-%d"), "rows": rows}, f, indent=1)


if __name__ == "__main__":
    main()
