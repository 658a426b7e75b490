# SPDX-License-Identifier: Apache-2.0
# In the lab, for the proofs with databases: words beside those of scenario.sh. The container has l, and its clients write there.

mkdir -p l/data && cp /cryoshim/test/proof/client.sh l

# until_true of a minute: a database on a busy machine.
patiently() {
	local try
	for ((try = 0; try < 600; try++)); do
		if "$@" >/dev/null 2>&1; then return 0; fi
		sleep 0.1
	done
	tail -n 20 l/*.log >&2
	no "never became true: $*"
}
lines_of() { [ "$(wc -l <"$1")" -gt "$2" ]; }
# go_on FILE...: each client does more of its own.
go_on() {
	local file
	for file in l/wrote.? l/read "$@"; do patiently lines_of "$file" $(($(wc -l <"$file") + 2)); done
}
# said: what has gone wrong, in the words of CRIU and of cryoshim.
said() { grep -hs Error /var/lib/containers/storage/overlay-containers/*/userdata/*.log >&2 || true; }
# rings PID: how many it has.
rings() { find "/proc/$1/fd" -lname 'anon_inode:\[io_uring\]' | wc -l; }
# committed CLIENT...: row for row what the clients know to be committed, in order and without a gap, and not one row more.
committed() {
	local k
	for k in "$@"; do
		sql "select n from numbers where client = $k order by n" >l/rows
		cmp l/rows l/wrote.$k
		seq "$(wc -l <l/rows)" | cmp - l/rows
	done
	[ "$(sort -u l/read | wc -l)" = 1 ] || no "it has read different things"
}
# no_errors: no client has seen one.
no_errors() {
	local file
	for file in l/*.err; do [ ! -s "$file" ] || { cat "$file"; no "a client has seen an error: $file"; }; done
}
