package archtest

import "slices"

// maxLines is how long a source file may be.
const maxLines = 500

// services are the folders of the services, siblings of each other.
func services() []string {
	return []string{
		"vrrp", "lb", "dns", "ntpproxy", "aptproxy", "logrelay", "nfsha", "deploy",
		"discovery", "raftstore", "api",
	}
}

// kernelState are the packages that declare what the kernel should do.
func kernelState() []string {
	return []string{
		"internal/kernel/link", "internal/kernel/ipvs", "internal/kernel/rawsock", "internal/kernel/sysctl",
		"internal/kernel/firewall", "internal/kernel/mount", "internal/kernel/clock",
	}
}

// importRule forbids imports: of packages of ours, or of others' trees.
type importRule struct {
	from        []string // to files below these folders; none: to all
	except      []string // but not to those below these
	exceptTests bool
	ours        func(from, imported string) bool // a package of ours, below the module
	foreign     []string
	why         string
}

// importRules are the directions of imports of docs/ARCHITECTURE.md.
func importRules() []importRule {
	return []importRule{
		{
			from: services(),
			ours: func(from, imported string) bool {
				return within(imported, services()...) && !within(imported, top(from))
			},
			why: "services never import each other: declare the interface that is needed beside its use, and let cmd/holdfast wire it",
		}, {
			from: []string{"internal", "cluster"},
			ours: func(_, imported string) bool { return within(imported, services()...) },
			why:  "what the services share doesn't know them",
		}, {
			from: []string{"internal/state"},
			ours: func(from, imported string) bool { return !within(imported, from) },
			why:  "the schema and the kernel's packages are leaves: they import nothing of ours",
		}, {
			from:        []string{"internal/kernel"},
			exceptTests: true, // they need hosts of the lab
			ours:        func(from, imported string) bool { return !within(imported, from) },
			why:         "the schema and the kernel's packages are leaves: they import nothing of ours",
		}, {
			except: []string{"vrrp", "lb", "nfsha", "deploy", "ntpproxy", "cmd", "lab", "chaos", "bench", "internal/kernel"},
			ours:   func(_, imported string) bool { return within(imported, kernelState()...) },
			why:    "only vrrp, lb, nfsha, deploy and ntpproxy change the kernel's state",
		}, {
			except: []string{"cmd"},
			ours:   func(_, imported string) bool { return within(imported, "cmd") },
			why:    "cmd is where things are wired, and nothing to import",
		}, {
			except:      []string{"lab", "chaos", "bench"},
			exceptTests: true,
			ours:        func(_, imported string) bool { return within(imported, "lab", "chaos", "bench") },
			why:         "the lab, the chaos tests and the benchmarks are no part of the product",
		}, {
			except:  []string{"internal/kernel", "lab", "chaos"},
			foreign: []string{"golang.org/x/sys", "github.com/vishvananda/netlink", "github.com/vishvananda/netns"},
			why:     "system calls and netlink are used below internal/kernel only",
		}, {
			except:      []string{"internal/kernel/command", "lab", "chaos", "bench"},
			exceptTests: true,
			foreign:     []string{"os/exec"},
			why:         "programs are run through internal/kernel/command: by its list, with a time limit and as their own user",
		}, {
			except:  []string{"raftstore"},
			foreign: []string{"github.com/hashicorp/raft", "github.com/hashicorp/raft-boltdb", "github.com/boltdb/bolt"},
			why:     "Raft and its log are raftstore's alone: propose through internal/state",
		}, {
			except:  []string{"raftstore", "aptproxy", "internal/boltfile"},
			foreign: []string{"go.etcd.io/bbolt"},
			why:     "what is in the store is proposed through internal/state; of files of its own, only the package cache has an index",
		}, {
			except:  []string{"discovery"},
			foreign: []string{"github.com/hashicorp/serf", "github.com/hashicorp/memberlist"},
			why:     "gossip is discovery's alone",
		}, {
			except:  []string{"dns", "internal/check", "lab", "chaos", "bench"},
			foreign: []string{"github.com/miekg/dns"},
			why:     "DNS messages are the business of dns, of internal/check that probes, and of what tests them",
		},
	}
}

// top is the service that a package belongs to.
func top(dir string) string {
	i := slices.IndexFunc(services(), func(s string) bool { return within(dir, s) })
	if i < 0 {
		return dir
	}
	return services()[i]
}
