#!/bin/bash
# Keeps a simulated clock with an unmodified chronyd, as ntpproxy/discipline's
# simulator does with ours: three sources, 50 µs and an exponential part of 10 µs
# each way, an oscillator 20 ppm off whose frequency walks by 1e-9 a second.
#
#   CLKNETSIM=DIR bench/ntp/clknetsim.sh holdover|heat [SEEDS]
#
# DIR is a built clknetsim (github.com/mlichvar/clknetsim); hack/peers gets
# chronyd. holdover: two days with sources and one without, how far off at its
# end. heat: the frequency moves by 0.5 ppm within 20 minutes, how far off at most
# then.
set -euo pipefail
what=${1:?holdover or heat}
seeds=${2:-10}
export CLKNETSIM_PATH=${CLKNETSIM:?the directory of a built clknetsim}
root=$(cd "$(dirname "$0")/../.." && pwd)
export PATH=$root/build/peers/root/usr/sbin:$PATH
CLKNETSIM_TMPDIR=$(mktemp -d)
export CLKNETSIM_TMPDIR
trap 'rm -rf "$CLKNETSIM_TMPDIR"' EXIT
set +eu # its functions count on neither
# shellcheck source=/dev/null
. "$CLKNETSIM_PATH/clknetsim.bash"

way='(* 10e-6 (exponential))'
drift='(+ 20e-6 (sum (* 1e-9 (normal))))'
case $what in
holdover)
	length=259200
	way="$way (* -1e3 (max 0 (min 1 (+ time -172800))))" # a negative delay is a loss
	;;
heat)
	length=72000
	awk 'BEGIN { for (t = 0; t < 72000; t++) { x = (t - 36000) / 1200; print 0.5e-6 * (x < 0 ? 0 : x > 1 ? 1 : x) } }' >"$CLKNETSIM_TMPDIR/heat"
	drift="(+ 20e-6 (sum (* 1e-9 (normal))) (file \"$CLKNETSIM_TMPDIR/heat\"))"
	;;
*)
	echo "$what is neither holdover nor heat" >&2
	exit 2
	;;
esac
{
	for i in 1 2 3; do
		echo "node4_delay$i = (+ 50e-6 $way)"
		echo "node${i}_delay4 = (+ 50e-6 $way)"
	done
	echo "node4_freq = $drift"
} >"$CLKNETSIM_TMPDIR/conf"
for seed in $(seq "$seeds"); do
	export CLKNETSIM_RANDOM_SEED=$seed
	for i in 1 2 3; do start_client "$i" chronyd "local stratum 1"; done
	start_client 4 chronyd "makestep 0.1 3
server 192.168.123.1 iburst
server 192.168.123.2 iburst
server 192.168.123.3 iburst"
	start_server 4 -v 1 -o "$CLKNETSIM_TMPDIR/offset" -l "$length" || exit 1
	awk -v what="$what" '
		{ off = $4 < 0 ? -$4 : $4 }
		what == "holdover" || NR > 32400 && NR <= 43200 && off > most { most = off }
		END { print most * 1e6 }' "$CLKNETSIM_TMPDIR/offset"
done | awk '
	{ squares += $1 * $1; if ($1 > most) most = $1; if (NR == 1 || $1 < least) least = $1 }
	END { printf "%d runs: rms %.1f µs, %.1f to %.1f\n", NR, sqrt(squares / NR), least, most }'
