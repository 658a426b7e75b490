# SPDX-License-Identifier: Apache-2.0
# What goes wrong, or needs no session: run with cryoshim and bare, and said in the same form, to be compared.

set -u
cd /tmp
mkdir i

# show NAME COMMAND...: prints its code, what it said, and the errors in the logs that it left.
show() {
	local name=$1 code=0
	shift
	rm -rf /tmp/w && mkdir /tmp/w
	echo "=== $name"
	timeout 60 "$@" >/tmp/w/stdout 2>/tmp/w/stderr </dev/null || code=$?
	echo "code $code"
	sed 's/^/stdout: /' /tmp/w/stdout
	sed 's/^/stderr: /' /tmp/w/stderr
	find /tmp/i /tmp/w -name '*.log' -not -name 'cryoshim.log' | sort | while read -r log; do
		echo "log $log"
		grep -a Error "$log"
	done
}
fresh() { rm -rf /tmp/i && mkdir /tmp/i; }

# begin COMMAND...: a process in a session of its own, which makes /tmp/begun when it is ready; its pid is $pid.
begin() {
	rm -f /tmp/begun
	setsid "$@" </dev/null >/dev/null 2>&1 &
	pid=$!
	until [ -e /tmp/begun ] || ! kill -0 "$pid"; do sleep 0.02; done
	sleep 0.3
}
end() {
	kill -KILL "$pid" 2>/dev/null
	wait "$pid" 2>/dev/null
}

show "no arguments" criu
show "--version" criu --version
show "-V" criu -V
show "--help" criu --help
show "unknown option" criu dump --no-such-option
show "unknown verb" criu frobnicate
show "check" criu check
show "check of an unknown feature" criu check --feature no_such
show "check of a feature" criu check --feature mem_dirty_track
show "swrk without a number" criu swrk
show "swrk with a word" criu swrk word
show "swrk with a closed descriptor" criu swrk 99
show "dump without a tree" criu dump -D i
show "dump of a word" criu dump -t word -D i
show "dump of a pid that is not there" criu dump -t 999999 -D i -o dump.log
show "dump with a configuration that is not there" criu --config /tmp/absent dump -t 999999 -D i
show "restore from an empty directory" criu restore -D i -o restore.log
show "restore from a directory that is not there" criu restore -D /tmp/absent

begin sh -c ': >/tmp/begun; while :; do sleep 1; done'
show "dump into a directory that is not there" criu dump -t "$pid" -D /tmp/absent
show "dump with a log that cannot be made" criu dump -t "$pid" -D i -o /tmp/absent/dump.log
show "dump with a pid file that cannot be made" criu dump -t 999999 -D i --pidfile /tmp/absent/pid
kill -0 "$pid" && echo "unharmed"
end

fresh
begin python3 -c '
import socket, time
a = socket.socket(); a.bind(("127.0.0.1", 0)); a.listen()
b = socket.create_connection(a.getsockname()); c = a.accept()
open("/tmp/begun", "w").close()
time.sleep(1000)'
show "dump of an established connection" criu dump -t "$pid" -D i -o dump.log
kill -0 "$pid" && echo "unharmed"
end

fresh
begin python3 -c '
import fcntl, time
f = open("/tmp/locked", "w"); fcntl.flock(f, fcntl.LOCK_EX)
open("/tmp/begun", "w").close()
time.sleep(1000)'
show "dump of a held lock" criu dump -t "$pid" -D i -o dump.log
kill -0 "$pid" && echo "unharmed"
end

fresh
begin python3 -c '
import ctypes, time
fd = ctypes.CDLL(None).syscall(323, 0o2000000)  # userfaultfd
assert fd >= 0
open("/tmp/begun", "w").close()
time.sleep(1000)'
show "dump of a userfaultfd" criu dump -t "$pid" -D i -o dump.log
kill -0 "$pid" && echo "unharmed"
end

fresh
begin sh -c ': >/tmp/begun; sleep 1000; true'
until child=$(pgrep -P "$pid" -x sleep); do sleep 0.02; done
show "dump of a task whose session leader stays outside" criu dump -t "$child" -D i -o dump.log
kill -0 "$child" && echo "unharmed"
kill -KILL "$child"
end

# A good dump, damaged in one place each.
fresh
begin sh -c ': >/tmp/begun; while :; do sleep 1; done'
root=$pid
criu dump -t "$pid" -D i >/dev/null 2>&1 || echo "the dump failed"
wait "$pid" 2>/dev/null
mv i good
damage() {
	fresh
	cp good/*.img i/
	eval "$2"
	show "restore, $1" criu restore -d -D i -o restore.log
	[ ! -d "/proc/$root" ] || { echo "restored all the same"; kill -KILL "$root"; }
}
damage "inventory missing" "rm i/inventory.img"
damage "inventory empty" ": >i/inventory.img"
damage "inventory of another magic" "printf '\\1\\2\\3\\4\\5\\6\\7\\10' >i/inventory.img"
damage "core missing" "rm i/core-$root.img"
damage "core truncated" "truncate -s 20 i/core-$root.img"
damage "core of zeros" "head -c 400 /dev/zero >i/core-$root.img"
damage "pstree missing" "rm i/pstree.img"
damage "pstree truncated" "truncate -s 11 i/pstree.img"
damage "mm missing" "rm i/mm-$root.img"
damage "files missing" "rm i/files.img"
damage "pages missing" "rm i/pages-*.img"
damage "pagemap truncated" "for f in i/pagemap-*; do truncate -s 14 \$f; done"

python3 /cryoshim/test/support/swrk.py >names
while read -r name; do
	fresh
	show "swrk: $name" python3 /cryoshim/test/support/swrk.py "$name"
done <names
echo "=== left behind"
# The shim may outlive its engine by a moment.
for try in 1 2 3 4 5 6 7 8 9 10; do pgrep -f '[s]him\.cjs' >/dev/null || break; sleep 0.2; done
echo "processes: $(pgrep -f '[s]him\.cjs') $(pgrep -x criu)"
