# SPDX-License-Identifier: Apache-2.0
# In the container of a database: a client. "answering" sends what it reads to the database over one connection, and writes the answers.

# client FILE STATEMENT: one connection, and a statement ($n: how many it has made) after each answer, which is written down.
client() {
	: >"$1"
	{
		n=0
		while [ ! -e stop ]; do
			n=$((n + 1))
			eval "echo \"$2\""
			until [ "$(wc -l <"$1")" -ge "$n" ] || [ -e stop ]; do sleep 0.01; done
		done
	} | answering >"$1" 2>"$1.err"
}
