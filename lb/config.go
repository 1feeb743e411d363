package lb

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"holdfast/cluster"
	"holdfast/internal/check"
	"holdfast/internal/kernel/firewall"
	"holdfast/internal/kernel/ipvs"
)

// Section is the top-level key of the cluster file that ValidateSection reads.
const Section = "lb"

// Bounds and defaults of the section.
const (
	defaultSyncID    = 51
	defaultHandover  = time.Second
	maxHandover      = 10 * time.Second
	defaultScheduler = "wlc"
	defaultWeight    = 1
	maxWeight        = 65535
	maxPersistence   = 31 * 24 * time.Hour
	maxSlowStart     = time.Hour

	// A server without a check of its own is asked for a TCP connection.
	checkEvery   = time.Second
	checkTimeout = time.Second
	checkRise    = 2
	checkFall    = 1
)

// schedulers are those that direct routing of logins needs; all are modules
// ip_vs_NAME of the kernel.
func schedulers() []string {
	return []string{"rr", "wrr", "lc", "wlc", "sh", "mh", "sed", "nq"}
}

// section is the `lb:` section as it stands in the file.
type section struct {
	Sync     syncSection                `yaml:"sync"`
	Handover time.Duration              `yaml:"handover"`
	Firewall string                     `yaml:"firewall"`
	Services map[string]cluster.Section `yaml:"services"`
}

type syncSection struct {
	Network string `yaml:"network"`
	ID      int    `yaml:"id"`
}

type serviceSection struct {
	VIP         string          `yaml:"vip"`
	Port        int             `yaml:"port"`
	Mark        uint32          `yaml:"mark"`
	Protocol    string          `yaml:"protocol"`
	Scheduler   string          `yaml:"scheduler"`
	Fallback    bool            `yaml:"fallback"`
	Persistence time.Duration   `yaml:"persistence"`
	Granularity int             `yaml:"granularity"`
	Servers     cluster.Nodes   `yaml:"servers"`
	Weight      int             `yaml:"weight"`
	Weights     map[string]int  `yaml:"weights"`
	Upper       uint32          `yaml:"upper"`
	Lower       uint32          `yaml:"lower"`
	Sorry       netip.Addr      `yaml:"sorry"`
	Quorum      int             `yaml:"quorum"`
	Hysteresis  int             `yaml:"hysteresis"`
	Inhibit     bool            `yaml:"inhibit"`
	SlowStart   time.Duration   `yaml:"slow_start"`
	Path        bool            `yaml:"path"`
	Check       cluster.Section `yaml:"check"`
}

// ValidateSection checks the `lb:` section of a cluster file; a file without
// one is in order. The error is cluster.Errors.
func ValidateSection(file *cluster.File, s cluster.Section) error {
	_, err := decode(file, s, "")
	return err
}

// SettingsFrom gives what the file says to one of its nodes.
func SettingsFrom(file *cluster.File, node string) (Settings, error) {
	return decode(file, file.Section(Section), node)
}

// decode reads the section with its defaults; it reports all mistakes at once.
func decode(file *cluster.File, s cluster.Section, node string) (Settings, error) {
	if s.IsZero() {
		return Settings{Node: node}, nil
	}
	raw := section{Sync: syncSection{ID: defaultSyncID}, Handover: defaultHandover, Firewall: string(firewall.Off)}
	if err := s.Decode(&raw); err != nil {
		return Settings{}, err
	}
	d := decoder{file: file, section: s, node: node}
	d.within("sync.id", raw.Sync.ID, 1, 255)
	d.within("handover", raw.Handover, 0, maxHandover)
	if !slices.Contains(firewall.Modes(), raw.Firewall) {
		d.errorf("firewall", "%q is not known; %s are", raw.Firewall, strings.Join(firewall.Modes(), ", "))
	}
	set := Settings{Node: node, Handover: raw.Handover, Firewall: firewall.Mode(raw.Firewall), Sync: Sync{ID: uint8(raw.Sync.ID)}}
	for _, name := range s.At("services").Keys() {
		if v, ok := d.service(name, raw.Services[name]); ok {
			set.Services = append(set.Services, v)
		}
	}
	d.distinct(set.Services)
	set.Sync.Addr = d.syncAddr(raw.Sync.Network, set.Services)
	if len(d.errs) > 0 {
		return Settings{}, d.errs
	}
	// What this node neither directs nor serves is not its business.
	set.Services = slices.DeleteFunc(set.Services, func(v VirtualService) bool {
		return !v.Director && !slices.ContainsFunc(v.Servers, func(r Server) bool { return r.Node == node })
	})
	return set, nil
}

// decoder collects the mistakes of a section.
type decoder struct {
	marks   uint32 // given to servers so far
	file    *cluster.File
	section cluster.Section
	node    string
	errs    cluster.Errors
}

func (d *decoder) errorf(key, format string, args ...any) {
	d.errs = append(d.errs, d.section.Errorf(key, format, args...))
}

// join adds mistakes that were found elsewhere, those that each server of a
// service would repeat once.
func (d *decoder) join(key string, err error) {
	var wrong cluster.Errors
	if !errors.As(err, &wrong) {
		wrong = cluster.Errors{d.section.Errorf(key, "%v", err)}
	}
	for _, w := range wrong {
		if !slices.ContainsFunc(d.errs, func(known *cluster.Error) bool { return known.Error() == w.Error() }) {
			d.errs = append(d.errs, w)
		}
	}
}

// within checks a number or a duration.
func (d *decoder) within(key string, value, least, most any) {
	outside := false
	switch v := value.(type) {
	case int:
		outside = v < least.(int) || v > most.(int)
	case time.Duration:
		low, _ := least.(time.Duration)
		outside = v < low || v > most.(time.Duration)
	}
	if outside {
		d.errorf(key, "%v is out of range: %v to %v", value, least, most)
	}
}

// syncAddr is this node's address on the network of the daemons: that of the
// first service unless said. It is invalid for who directs nothing.
func (d *decoder) syncAddr(network string, services []VirtualService) netip.Addr {
	if network != "" && d.file.Network(network) == nil {
		d.errorf("sync.network", "there is no network %q", network)
		return netip.Addr{}
	}
	for _, v := range services {
		if !v.Director {
			continue
		}
		network = cmp.Or(network, d.file.VIP(v.VIP).Network)
		addr, ok := d.file.Node(d.node).Addresses[network]
		if !ok {
			d.errorf("sync.network", "%s directs %s and has no address on the network %s", d.node, v.Name, network)
		}
		return addr
	}
	return netip.Addr{}
}

// distinct: no two services are the same to the kernel.
func (d *decoder) distinct(services []VirtualService) {
	for i := range services {
		for j := range services[:i] {
			if services[i].key() == services[j].key() {
				d.errorf("services."+services[i].Name, "%v is the service %s already", services[i].key(), services[j].Name)
			}
		}
	}
}

// service reads one service.
func (d *decoder) service(name string, s cluster.Section) (v VirtualService, ok bool) {
	raw := serviceSection{
		Protocol: "tcp", Scheduler: defaultScheduler, Weight: defaultWeight, Quorum: 1, Inhibit: true,
	}
	if err := s.Decode(&raw); err != nil {
		d.join("services."+name, err)
		return VirtualService{}, false
	}
	before := len(d.errs)
	at := func(key string) string { return "services." + name + "." + key }
	vip := d.file.VIP(raw.VIP)
	if vip == nil {
		d.errorf(at("vip"), "there is no VIP %q", raw.VIP)
		return VirtualService{}, false
	}
	d.reach(at, &raw)
	v = VirtualService{
		Name: name, VIP: raw.VIP, Director: slices.Contains(vip.Members, d.node), Addr: vip.Address,
		Port: uint16(raw.Port), Mark: raw.Mark, Protocol: map[string]ipvs.Protocol{"tcp": ipvs.TCP, "udp": ipvs.UDP}[raw.Protocol],
		Scheduler: raw.Scheduler, Persistence: raw.Persistence, Granularity: raw.Granularity,
		Sorry: raw.Sorry, Quorum: raw.Quorum, Hysteresis: raw.Hysteresis, Inhibit: raw.Inhibit, SlowStart: raw.SlowStart,
	}
	if raw.Fallback {
		v.Flags |= ipvs.Fallback
	}
	if network := d.file.Network(vip.Network); network != nil {
		v.Network = network.Prefix
	}
	v.Path = raw.Path
	if self := d.file.Node(d.node); self != nil {
		v.From = self.Addresses[vip.Network]
	}
	for _, member := range vip.Members {
		if addr, ok := d.file.Node(member).Addresses[vip.Network]; ok {
			v.Directors = append(v.Directors, addr)
		}
	}
	d.ranges(at, &raw, v.Addr.BitLen())
	d.servers(at, &raw, vip, &v)
	return v, len(d.errs) == before
}

// reach checks what comes in: a port or a mark.
func (d *decoder) reach(at func(string) string, raw *serviceSection) {
	if raw.Protocol != "tcp" && raw.Protocol != "udp" {
		d.errorf(at("protocol"), "%q is not known; tcp and udp are", raw.Protocol)
	}
	if raw.Mark == 0 || raw.Port != 0 {
		d.within(at("port"), raw.Port, 1, 65535)
	}
	if !slices.Contains(schedulers(), raw.Scheduler) {
		d.errorf(at("scheduler"), "%q is not known; %s are", raw.Scheduler, strings.Join(schedulers(), ", "))
	}
	if raw.Fallback && raw.Scheduler != "sh" && raw.Scheduler != "mh" {
		d.errorf(at("fallback"), "%s has none; sh and mh have", raw.Scheduler)
	}
}

func (d *decoder) ranges(at func(string) string, raw *serviceSection, bits int) {
	d.within(at("persistence"), raw.Persistence, time.Duration(0), maxPersistence)
	if raw.Persistence%time.Second != 0 {
		d.errorf(at("persistence"), "%v is no whole number of seconds", raw.Persistence)
	}
	d.within(at("granularity"), raw.Granularity, 0, bits)
	d.within(at("weight"), raw.Weight, 1, maxWeight)
	d.within(at("slow_start"), raw.SlowStart, time.Duration(0), maxSlowStart)
	d.within(at("quorum"), raw.Quorum, 1, maxWeight*1000)
	if raw.Hysteresis < 0 || raw.Hysteresis >= raw.Quorum {
		d.errorf(at("hysteresis"), "%d is out of range: 0 to %d, less than the quorum", raw.Hysteresis, raw.Quorum-1)
	}
	if raw.Lower > raw.Upper {
		d.errorf(at("lower"), "%d is more than upper, %d", raw.Lower, raw.Upper)
	}
}

// servers reads the real servers and their checks. They are on the network of
// the address: direct routing needs one wire.
func (d *decoder) servers(at func(string) string, raw *serviceSection, vip *cluster.VIP, v *VirtualService) {
	names := raw.Servers
	if len(names) == 0 {
		names = vip.Members
	}
	if raw.Sorry.IsValid() && raw.Sorry.Is4() != v.Addr.Is4() {
		d.errorf(at("sorry"), "%v is of another family than %v", raw.Sorry, v.Addr)
	}
	for node := range raw.Weights {
		if !slices.Contains(names, node) {
			d.errorf(at("weights."+node), "%s is no server of it", node)
		}
	}
	total := 0
	for _, name := range names {
		addr, ok := d.file.Node(name).Addresses[vip.Network]
		if !ok || addr.Is4() != v.Addr.Is4() {
			d.errorf(at("servers"), "%s has no address of the family of %v on the network %s", name, v.Addr, vip.Network)
			continue
		}
		r := Server{Node: name, Addr: addr, Weight: raw.Weight, Upper: raw.Upper, Lower: raw.Lower}
		if weight, ok := raw.Weights[name]; ok {
			d.within(at("weights."+name), weight, 1, maxWeight)
			r.Weight = weight
		}
		total += r.Weight
		r.Check = d.check(at, raw, v, r)
		if v.Path {
			r.Mark = d.mark(at, v, r)
		}
		v.Servers = append(v.Servers, r)
	}
	if len(names) > 0 && raw.Quorum+raw.Hysteresis > total {
		d.errorf(at("quorum"), "%d with a hysteresis of %d is never there: all servers together have the weight %d", raw.Quorum, raw.Hysteresis, total)
	}
}

// check is a server's check, on its own address. Without one in the file it is
// a TCP connection; what is balanced by mark or over UDP then has none.
func (d *decoder) check(at func(string) string, raw *serviceSection, v *VirtualService, r Server) check.Definition {
	list, err := check.Decode(raw.Check, check.Target{Service: v.Name, Address: r.Addr, Port: v.Port})
	switch {
	case err != nil:
		d.join(at("check"), err)
		return check.Definition{}
	case len(list) > 1:
		d.errorf(at("check"), "%d checks; one is right", len(list))
		return check.Definition{}
	case len(list) == 1:
		list[0].ID = checkID(v.Name, r.Node)
		return list[0]
	case v.Mark != 0 || v.Protocol != ipvs.TCP:
		return check.Definition{}
	}
	return check.Definition{
		ID: checkID(v.Name, r.Node), Name: fmt.Sprintf("%s on %s", v.Name, r.Node),
		TCP:      netip.AddrPortFrom(r.Addr, v.Port).String(),
		Interval: checkEvery, Timeout: checkTimeout, Rise: checkRise, Fall: checkFall,
	}
}

// firstMark is the first of the firewall marks that lead to one real server
// each ("Hf"). A site that uses marks has small numbers, or single bits.
const firstMark = 0x48660000

// mark gives a server a mark of its own, the same on every node.
func (d *decoder) mark(at func(string) string, v *VirtualService, r Server) uint32 {
	if kind := r.Check.Type(); v.Mark != 0 || kind != "tcp" && kind != "ssh" && kind != "http" {
		d.errorf(at("path"), "only a check of tcp, ssh, http or https, of a service with a port, can go to the address")
		return 0
	}
	d.marks++
	return firstMark + d.marks - 1
}

// checkID names a server's check; checked reads it again.
func checkID(service, node string) string { return service + " " + node }
