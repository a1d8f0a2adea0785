package install

import (
	"fmt"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
)

// scaling is what a file says of how a Deployment scales: k8s.hpaSpec, and the values autoscaleEnabled,
// autoscaleMin and autoscaleMax, which win.
type scaling struct {
	spec    *HPASpec
	enabled *bool
	min     *int32
	max     int32
}

// autoscaler returns the HorizontalPodAutoscaler of the Deployment of that name and namespace, nil if none
// is wanted. It is of autoscaling/v1, which every Kubernetes that is supported serves, unless the file asks
// for what only v2 has (since Kubernetes 1.23): other metrics than CPU utilization, or a behavior. field
// is where hpaSpec stands, for errors.
func autoscaler(of metav1.ObjectMeta, s scaling, field string) (runtime.Object, error) {
	if s.enabled != nil && !*s.enabled || s.enabled == nil && s.spec == nil {
		return nil, nil
	}
	spec := s.spec
	if spec == nil {
		spec = &HPASpec{}
	}
	lo := first(s.min, spec.MinReplicas, ptr.To[int32](1))
	hi := max(first(s.max, spec.MaxReplicas, 5), *lo)
	if cpu, only := cpuTarget(spec.Metrics); only && len(spec.Behavior) == 0 {
		return &autoscalingv1.HorizontalPodAutoscaler{
			TypeMeta:   metav1.TypeMeta{APIVersion: "autoscaling/v1", Kind: "HorizontalPodAutoscaler"},
			ObjectMeta: of,
			Spec: autoscalingv1.HorizontalPodAutoscalerSpec{
				ScaleTargetRef: autoscalingv1.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: of.Name},
				MinReplicas:    lo, MaxReplicas: hi, TargetCPUUtilizationPercentage: ptr.To(first(cpu, 80)),
			},
		}, nil
	}
	h := &autoscalingv2.HorizontalPodAutoscaler{
		TypeMeta:   metav1.TypeMeta{APIVersion: "autoscaling/v2", Kind: "HorizontalPodAutoscaler"},
		ObjectMeta: of,
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: of.Name},
			MinReplicas:    lo, MaxReplicas: hi,
		},
	}
	for i, m := range spec.Metrics {
		at := fmt.Sprintf("%s.metrics[%d]", field, i)
		raw, ok := m.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("%s: is not a map", at)
		}
		var metric autoscalingv2.MetricSpec
		if err := strict(currentMetric(raw), &metric, at+"."); err != nil {
			return nil, err
		}
		h.Spec.Metrics = append(h.Spec.Metrics, metric)
	}
	if len(spec.Behavior) > 0 {
		h.Spec.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{}
		if err := strict(spec.Behavior, h.Spec.Behavior, field+".behavior."); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// cpuTarget returns the CPU utilization that metrics of any autoscaling version ask for, 0 without metrics;
// only is false if they ask for anything else.
func cpuTarget(metrics []any) (percent int32, only bool) {
	for _, m := range metrics {
		raw, _ := m.(map[string]any)
		r, _ := currentMetric(raw)["resource"].(map[string]any)
		t, _ := r["target"].(map[string]any)
		n, ok := number(t["averageUtilization"])
		if r["name"] != "cpu" || !ok || percent != 0 {
			return 0, false
		}
		percent = n
	}
	return percent, true
}

// currentMetric returns a metric in the form of autoscaling/v2: of autoscaling/v2beta1, which files of old
// have, it moves targetAverageUtilization and targetAverageValue of a resource into target.
func currentMetric(m map[string]any) map[string]any {
	r, ok := m["resource"].(map[string]any)
	if !ok || r["target"] != nil {
		return m
	}
	target := map[string]any{}
	if v := r["targetAverageUtilization"]; v != nil {
		target["type"], target["averageUtilization"] = "Utilization", v
	} else if v := r["targetAverageValue"]; v != nil {
		target["type"], target["averageValue"] = "AverageValue", v
	} else {
		return m
	}
	return map[string]any{"type": "Resource", "resource": map[string]any{"name": r["name"], "target": target}}
}

func number(v any) (int32, bool) {
	switch n := v.(type) {
	case int64:
		return int32(n), true
	case float64:
		return int32(n), true
	}
	return 0, false
}
