{{/*
Names. They are immutable in practice: selectors, the headless service and the claims' names are
made of them (docs/adr). So they depend on the release's name alone; there is no override.
*/}}
{{- define "everwire.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name }}{{ end }}
{{- end }}

{{- define "everwire.peers" -}}
{{ include "everwire.fullname" . }}-peers
{{- end }}

{{/* Selector labels of a component: dict "root" $ "component" "node". Never add one. */}}
{{- define "everwire.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of objects. Not of pods: a version there would restart all of them for nothing. */}}
{{- define "everwire.labels" -}}
{{ include "everwire.selector" . }}
app.kubernetes.io/part-of: everwire
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "everwire.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest }}{{ printf "%s@%s" $image.repository $image.digest }}{{ else }}{{ printf "%s:%s" $image.repository ($image.tag | default .Chart.AppVersion) }}{{ end }}
{{- end }}

{{/* What all pods are told about who they run as. */}}
{{- define "everwire.podSecurity" -}}
automountServiceAccountToken: false
serviceAccountName: {{ include "everwire.fullname" . }}
# Without this Kubernetes sets EVERWIRE_NODE_PORT and the like for our own services, and the
# binary refuses keys of its sections that it does not know.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "everwire.containerSecurity" -}}
image: {{ include "everwire.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/*
How many nodes form the cluster: the first three, or the only one. More nodes change nothing here,
so that scaling restarts nobody.
*/}}
{{- define "everwire.formation" -}}
{{ min (int .Values.node.replicas) 3 }}
{{- end }}

{{/* The first nodes' addresses: dict "root" $ "port" 7401. */}}
{{- define "everwire.first" -}}
{{- $root := .root -}}
{{- $port := .port -}}
{{- $addresses := list -}}
{{- range until (int (include "everwire.formation" $root)) -}}
{{- $addresses = append $addresses (printf "%s-node-%d.%s:%v" (include "everwire.fullname" $root) . (include "everwire.peersDomain" $root) $port) -}}
{{- end -}}
{{ join "," $addresses }}
{{- end }}

{{- define "everwire.peersDomain" -}}
{{ printf "%s.%s.svc.%s" (include "everwire.peers" .) .Release.Namespace .Values.clusterDomain }}
{{- end }}

{{/* A volume out of a secret: dict "name" "auth" "secret" "s" "keys" (list "a"). */}}
{{- define "everwire.secretVolume" -}}
- name: {{ .name }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
    items:
{{- range .keys }}
      - key: {{ . }}
        path: {{ . }}
{{- end }}
{{- end }}

{{/* What the schema cannot say: which values belong together. */}}
{{- define "everwire.check" -}}
{{- $node := .Values.node -}}
{{- $edge := .Values.edge -}}
{{- if gt (len (include "everwire.fullname" .)) 40 -}}
{{- fail (printf "the name %s has more than 40 characters: choose a shorter release name; names of pods and labels are made of it" (include "everwire.fullname" .)) -}}
{{- end -}}
{{- if not .Values.auth.secretName -}}
{{- fail "auth.secretName is empty: name the secret with the public key that verifies tokens (everwire token --new-key makes one)" -}}
{{- end -}}
{{- if and (not $node.insecure) (not (and $node.tls.secretName $node.peerTls.secretName)) -}}
{{- fail "node.tls.secretName and node.peerTls.secretName are needed; or say node.insecure: true" -}}
{{- end -}}
{{- if $edge.enabled -}}
{{- if not $edge.token.secretName -}}
{{- fail "edge.token.secretName is empty: name the secret with the edge's own token (everwire token --kind edge), or say edge.enabled: false" -}}
{{- end -}}
{{- if and (not $edge.insecure) (not $edge.tls.secretName) -}}
{{- fail "edge.tls.secretName is needed; or say edge.insecure: true where TLS ends before the edge" -}}
{{- end -}}
{{- if and $node.tls.secretName (not $edge.nodeCa.secretName) -}}
{{- fail "edge.nodeCa.secretName is needed with node.tls: the authority that signed the nodes' certificate" -}}
{{- end -}}
{{- if and $edge.nodeCa.secretName (not $node.tls.secretName) -}}
{{- fail "edge.nodeCa.secretName is given, but the nodes have no node.tls: the edge would refuse them" -}}
{{- end -}}
{{- end -}}
{{- end }}
