{{- define "tokenservice.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "tokenservice.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "tokenservice.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "tokenservice.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "tokenservice.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "tokenservice.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "tokenservice.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tokenservice.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "tokenservice.labels" -}}
{{ include "tokenservice.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: tokenservice
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "tokenservice.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "tokenservice.webhookName" -}}
{{ include "tokenservice.fullname" . }}-pods
{{- end }}

{{- define "tokenservice.podMonitors" -}}
{{- if and .Values.metrics.podMonitors (.Capabilities.APIVersions.Has "monitoring.coreos.com/v1") -}}
true
{{- else -}}
false
{{- end }}
{{- end }}

{{/* A NetworkPolicy peer for pods of another namespace: {namespace, podLabels} */}}
{{- define "tokenservice.peer" -}}
namespaceSelector:
  matchLabels:
    kubernetes.io/metadata.name: {{ .namespace }}
{{- with .podLabels }}
podSelector:
  matchLabels:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- end }}

{{/* Rules on what lives in namespaces; PodMonitors only where their API exists */}}
{{- define "tokenservice.namespacedRules" -}}
- apiGroups: [taas.dev]
  resources: [tokenservices]
  verbs: [get, list, watch]
- apiGroups: [taas.dev]
  resources: [tokenservices/status]
  verbs: [patch]
# Where OwnerReferencesPermissionEnforcement is on, owning with blockOwnerDeletion needs this.
- apiGroups: [taas.dev]
  resources: [tokenservices/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
# Of these Deployments and LeaderWorkerSets are deleted when their variant is no longer used, and DaemonSets, which hold
# images ready on nodes, with their NetworkPolicies when no node is to. Kubernetes asks for the right to delete also where
# an owner reference changes and OwnerReferencesPermissionEnforcement is on: for children that were left behind by their
# TokenService and are taken back by a new one.
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments, daemonsets]
  verbs: [list, watch, create, patch, delete]
# Replicas larger than a node. The rights stand also where that API is missing: it may be installed at any time.
- apiGroups: [leaderworkerset.x-k8s.io]
  resources: [leaderworkersets]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [list, watch, create, patch]
{{- if .Values.adapterLoader.image }}
# The lists of adapters that running engines are to load.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [list, watch, create, patch, delete]
{{- end }}
{{- if eq (include "tokenservice.podMonitors" .) "true" }}
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [list, watch, create, patch, delete]
{{- end }}
{{- end }}

{{/* Rules on what lives outside namespaces */}}
{{- define "tokenservice.clusterRules" -}}
- apiGroups: [""]
  resources: [nodes]
  verbs: [list, watch]
- apiGroups: [taas.dev]
  resources: [tokenfleets]
  verbs: [list, watch]
- apiGroups: [taas.dev]
  resources: [acceleratorclasses, capacityprofiles]
  verbs: [list, watch{{ if .Values.catalogue.enabled }}, create, patch{{ end }}]
- apiGroups: [taas.dev]
  resources: [tokenfleets/status, acceleratorclasses/status, capacityprofiles/status]
  verbs: [patch]
{{- if .Values.webhook.enabled }}
- apiGroups: [admissionregistration.k8s.io]
  resources: [mutatingwebhookconfigurations]
  resourceNames: [{{ include "tokenservice.webhookName" . }}]
  verbs: [get, patch]
{{- end }}
{{- end }}

{{/* CRDs of an older chart lack fields that stored objects may have: the API server drops them at the next write */}}
{{- define "tokenservice.refuseDowngrade" -}}
{{- $found := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "tokenservices.taas.dev" | default dict }}
{{- $installed := dig "metadata" "annotations" "taas.dev/chart-version" "" $found }}
{{- if and $installed (not .Values.crds.allowDowngrade) }}
{{- if lt ((semver .Chart.Version).Compare (semver $installed)) 0 }}
{{- fail (printf "the CustomResourceDefinitions are of chart %s, this is %s: an older schema drops what newer fields say, at the next write of each object. Keep them with --set crds.enabled=false (the older operator then leaves services alone whose fields it does not know), or accept the loss with --set crds.allowDowngrade=true" $installed .Chart.Version) }}
{{- end }}
{{- end }}
{{- end }}
