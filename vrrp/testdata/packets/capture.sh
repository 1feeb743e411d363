#!/bin/sh -e
# Captures the adverts of the keepalived of this machine into NAME.hex, as IP
# packets: sh capture.sh [DIR]. It needs root, keepalived, tcpdump and iproute2,
# and works in a network namespace of its own.
[ "$1" = inside ] || exec unshare -n sh -e "$0" inside "${1:-$(dirname "$0")}"
out=$2
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

ip link set lo up
ip link add name wire0 address 02:00:00:00:00:01 type veth peer name wire1 address 02:00:00:00:00:02
ip address add 10.1.0.1/24 dev wire0
ip -6 address add fe80::a/64 dev wire0 nodad
ip link set wire0 up
ip link set wire1 up
ip neighbour replace 10.1.0.2 lladdr 02:00:00:00:00:02 dev wire0

# capture NAME ADVERTS FILTER: one that matches the filter, from a keepalived
# that lives for some seconds and is then told to stop; the configuration of
# its instance comes from standard input.
capture() {
	{
		echo 'global_defs {'
		echo '  vrrp_skip_check_adv_addr'
		echo '}'
		echo 'vrrp_instance web {'
		echo '  interface wire0'
		cat
		echo '}'
	} >"$tmp/conf"
	tcpdump -i wire1 -p -U --immediate-mode -c 1 -w "$tmp/pcap" "$2" 2>"$tmp/log" &
	dump=$!
	until grep -q listening "$tmp/log"; do sleep 0.1; done
	keepalived -n -P -f "$tmp/conf" -p "$tmp/pid" -r "$tmp/vpid" >"$tmp/keepalived" 2>&1 &
	daemon=$!
	sleep 8
	kill "$daemon"
	wait "$daemon" || true
	timeout 5 tail --pid="$dump" -f /dev/null || { kill "$dump"; echo "$1: no packet" >&2; cat "$tmp/keepalived" >&2; exit 1; }
	# 24 bytes of the file's header, 16 of the packet's, 14 of Ethernet.
	{
		echo "# $(keepalived --version 2>&1 | sed -n 's/^Keepalived v\([0-9.]*\).*/keepalived \1/p'), $1"
		tail -c +55 "$tmp/pcap" | od -An -v -tx1
	} >"$out/$1.hex"
}

capture v2-none 'ip proto 112' <<-END
	version 2
	virtual_router_id 51
	priority 100
	advert_int 1
	virtual_ipaddress {
		10.1.0.100
		10.1.0.101
	}
END
capture v2-pass 'ip proto 112' <<-END
	version 2
	virtual_router_id 51
	priority 150
	advert_int 2
	authentication {
		auth_type PASS
		auth_pass longer-than-eight
	}
	virtual_ipaddress {
		10.1.0.100
	}
END
capture v2-resign 'ip proto 112 and ip[22] == 0' <<-END
	version 2
	virtual_router_id 51
	priority 100
	advert_int 1
	virtual_ipaddress {
		10.1.0.100
	}
END
capture v3-multicast 'ip proto 112' <<-END
	version 3
	virtual_router_id 52
	priority 254
	advert_int 0.1
	virtual_ipaddress {
		10.1.0.100
		10.1.0.101
		10.1.0.102
	}
END
capture v3-unicast 'ip proto 112' <<-END
	version 3
	virtual_router_id 52
	priority 100
	advert_int 0.25
	unicast_src_ip 10.1.0.1
	unicast_peer {
		10.1.0.2
	}
	virtual_ipaddress {
		10.1.0.100
	}
END
capture v3-resign 'ip proto 112 and ip[22] == 0' <<-END
	version 3
	virtual_router_id 52
	priority 100
	advert_int 0.1
	virtual_ipaddress {
		10.1.0.100
	}
END
capture v3-owner 'ip proto 112' <<-END
	version 3
	virtual_router_id 52
	priority 255
	advert_int 40.95
	virtual_ipaddress {
		10.1.0.100
	}
END
capture v3-ipv6 'ip6 proto 112' <<-END
	version 3
	virtual_router_id 53
	priority 100
	advert_int 0.5
	virtual_ipaddress {
		fe80::100
		2001:db8::100
	}
END
capture v3-ipv6-resign 'ip6 proto 112 and ip6[42] == 0' <<-END
	version 3
	virtual_router_id 53
	priority 100
	advert_int 0.5
	virtual_ipaddress {
		fe80::100
	}
END
