package dns

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
)

// metric sums the series of a counter or gauge that have all of the label
// values.
func metric(t testing.TB, f *fixture, name string, labels ...string) float64 {
	t.Helper()
	families, err := f.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			if hasLabels(m, labels) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func hasLabels(m *dto.Metric, values []string) bool {
	for _, v := range values {
		if !slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetValue() == v }) {
			return false
		}
	}
	return true
}

func TestMetricsPassTheLinterAndStandInTheREADME(t *testing.T) {
	f, server := serving(t)
	exchangeWith(t, "udp", server, question("apt.service.virtual", dns.TypeA))
	// A query is counted after its reply was sent, and with it the metric begins.
	eventually(t, "the query is counted", func() bool { return metric(t, f, "holdfast_dns_queries_total") == 1 })
	f.server.metrics.malformed.WithLabelValues("opt")
	f.server.metrics.dropped.WithLabelValues("send")
	f.server.metrics.forwarded.WithLabelValues("192.0.2.53:53", "answered")
	f.server.metrics.forwardDuration.WithLabelValues("192.0.2.53:53")
	f.server.metrics.transfers.WithLabelValues("hpc.example.com.", "sent")
	f.server.metrics.notifies.WithLabelValues("192.0.2.53:53", "heard")
	problems, err := testutil.GatherAndLint(f.registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	families, err := f.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, family := range families {
		names = append(names, family.GetName())
		if !strings.Contains(string(readme), "`"+family.GetName()) {
			t.Errorf("%s does not stand in README.md", family.GetName())
		}
	}
	for _, name := range regexp.MustCompile("holdfast_dns_[a-z_]+").FindAllString(string(readme), -1) {
		if !slices.Contains(names, name) {
			t.Errorf("%s stands in README.md and is no metric", name)
		}
	}
}

func TestQueriesAreCountedByZoneTypeRcodeAndTransport(t *testing.T) {
	f, server := serving(t)
	for range 3 {
		exchangeWith(t, "udp", server, question("apt.service.virtual", dns.TypeA))
	}
	exchangeWith(t, "tcp", server, question("nosuch.hpc.example.com", dns.TypeAAAA))
	exchangeWith(t, "udp", server, question("www.example.com", 4711))
	for _, want := range []struct {
		labels []string
		n      float64
	}{
		{[]string{"virtual.", "A", "NOERROR", "udp"}, 3},
		{[]string{"hpc.example.com.", "AAAA", "NXDOMAIN", "tcp"}, 1},
		{[]string{"none", "other", "REFUSED", "udp"}, 1},
	} {
		// A query is counted after its reply was sent.
		eventually(t, fmt.Sprintf("%v: %v are counted", want.labels, want.n), func() bool {
			return metric(t, f, "holdfast_dns_queries_total", want.labels...) == want.n
		})
	}
}
