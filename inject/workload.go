package inject

import (
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Workload is what a pod belongs to.
type Workload struct {
	APIVersion string // "apps/v1"
	Kind       string // "Deployment"
	Name       string // "helloworld-v1"
}

// cronJobName takes the schedule time off the name of a CronJob's Job.
var cronJobName = regexp.MustCompile(`^(.+)-\d{8,10}$`)

// workloadOf finds the workload by the pod's controller: a ReplicaSet with the pod's
// template hash in its name is a Deployment's, a Job with a time in its name a CronJob's.
func workloadOf(pod *corev1.Pod) Workload {
	owner := metav1.GetControllerOfNoCopy(pod)
	if owner == nil {
		name := pod.Name
		if name == "" {
			name = strings.TrimSuffix(pod.GenerateName, "-")
		}
		return Workload{APIVersion: "v1", Kind: "Pod", Name: name}
	}
	w := Workload{APIVersion: owner.APIVersion, Kind: owner.Kind, Name: owner.Name}
	switch owner.Kind {
	case "ReplicaSet":
		if hash := pod.Labels["pod-template-hash"]; hash != "" {
			if name, ok := strings.CutSuffix(owner.Name, "-"+hash); ok {
				w = Workload{APIVersion: "apps/v1", Kind: "Deployment", Name: name}
			}
		}
	case "ReplicationController":
		if name := pod.Labels["deploymentconfig"]; name != "" {
			w = Workload{APIVersion: "apps.openshift.io/v1", Kind: "DeploymentConfig", Name: name}
		}
	case "Job":
		if m := cronJobName.FindStringSubmatch(owner.Name); m != nil {
			w = Workload{APIVersion: "batch/v1", Kind: "CronJob", Name: m[1]}
		}
	}
	return w
}

// owner is the ISTIO_META_OWNER of a workload in a namespace.
func (w Workload) owner(namespace string) string {
	return "kubernetes://apis/" + w.APIVersion + "/namespaces/" + namespace + "/" + strings.ToLower(w.Kind) + "s/" + w.Name
}
