package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"caddytarget/internal/topk"
)

// otherTargets is the label of all targets that have no series of their own. It is no
// host.
const otherTargets = "(other)"

// targets has the busiest and the most failing targets as series.
type targets struct{ top *topk.Sketch }

// targetMetrics are the metrics of a targets, each with the label target.
var targetMetrics = []struct {
	desc  *prometheus.Desc
	value func(topk.Counts) float64
}{
	{targetDesc("requests_total", "Requests to the target."), func(c topk.Counts) float64 { return float64(c.Requests) }},
	{targetDesc("requests_failed_total", "Requests to the target that failed."), func(c topk.Counts) float64 { return float64(c.Failures) }},
	{targetDesc("request_seconds_total", "How long requests to the target took, in all."), topk.Counts.Seconds},
	{targetDesc("connections_total", "Connections that were opened for requests to the target."), func(c topk.Counts) float64 { return float64(c.Connections) }},
}

func targetDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("caddy_target_top_"+name, help, []string{"target"}, nil)
}

// Describe implements prometheus.Collector.
func (c targets) Describe(descs chan<- *prometheus.Desc) {
	for _, m := range targetMetrics {
		descs <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c targets) Collect(metrics chan<- prometheus.Metric) {
	list, other := c.top.Series()
	for _, e := range append(list, topk.Entry{Target: otherTargets, Counts: other}) {
		for _, m := range targetMetrics {
			metrics <- prometheus.MustNewConstMetric(m.desc, prometheus.CounterValue, m.value(e.Counts), e.Target)
		}
	}
}

// Interface guard
var _ prometheus.Collector = targets{}
