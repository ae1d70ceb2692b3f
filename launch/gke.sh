#!/usr/bin/env bash
# Trains on Google Kubernetes Engine, as a JobSet: one pod for each machine, all started and restarted together.
#
#   launch/gke.sh ACTION [flags] [-- --config=FILE --workdir=DIR ...]
#
#   build     builds the image from this checkout and pushes it (docker)
#   render    prints the manifest of the run that stands after --
#   apply     starts it (kubectl)             status    prints how it stands
#   logs      follows process 0's log         delete    ends it: SIGTERM, it saves
#
#   --image=REGISTRY/NAME:TAG            where `factory` pushes it and pods find it
#   --name=bloodjax                      the JobSet's name
#   --kind=cuda                          cuda, or tpu
#   --accelerator= --topology=           nvidia-l4 (cuda) or tpu-v5-lite-podslice and 2x4 (tpu), if empty
#   --hosts=1 --chips=1 --slices=1       pods of a slice, GPUs or TPU chips of each pod, TPU slices
#   --spot                               on spot nodes
#   --claim=bloodjax --mount=/mnt/bloodjax   the volume claim (gke/storage.yaml) that all pods mount, and where
#   --restarts=20                        how often the run may be started again
#   --dry-run                            prints each command and runs none

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/lib.sh"

image='' name=bloodjax kind=cuda accelerator='' topology='' hosts=1 chips=1 slices=1 spot=''
claim=bloodjax mount=/mnt/bloodjax

# render: prints the manifest.
render() {
  local manifest variable args=("${arguments[@]//\$\(/\$\$\(}") # nor for Kubernetes, to which $(NAME) is a variable
  declare -A values=([NAME]=$name [RESTARTS]=$restarts [SLICES]=$slices [HOSTS]=$hosts [CHIPS]=$chips
    [IMAGE]=$image [CLAIM]=$claim [MOUNT]=$mount [ANNOTATIONS]="{}" [TOLERATIONS]="[]")
  if [[ $kind == tpu ]]; then
    values[RESOURCE]=google.com/tpu
    values[NODES]="cloud.google.com/gke-tpu-accelerator: \"$accelerator\", cloud.google.com/gke-tpu-topology: \"$topology\""
  else
    values[RESOURCE]=nvidia.com/gpu
    values[NODES]="cloud.google.com/gke-accelerator: \"$accelerator\""
    ((hosts == 1)) || args+=("--coordinator=$name-workers-0-0.$name:8476" "--num_processes=$hosts"
      "--process_id=\$(JOB_COMPLETION_INDEX)")
  fi
  if [[ $spot == true ]]; then
    values[NODES]+=', cloud.google.com/gke-spot: "true"'
    values[TOLERATIONS]='[{key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}]'
  fi
  # Each slice gets a node pool of its own.
  ((slices == 1)) ||
    values[ANNOTATIONS]='{alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool}'
  values[NODES]="{${values[NODES]}}"
  values[ARGS]=$(yaml_list "${args[@]}")
  manifest=$(sed 1d "$here/gke/jobset.yaml") # less its comment on the template
  # ARGS last: what stands in the run's flags is not for us to fill in.
  for variable in $(printf '%s\n' "${!values[@]}" | grep -vx ARGS) ARGS; do
    manifest=${manifest//"\${$variable}"/"${values[$variable]}"}
  done
  printf '%s\n' "$manifest"
}

# yaml_list WORD...: prints the words as a YAML list of strings.
yaml_list() {
  local word list=''
  for word in "$@"; do
    [[ $word != *[[:cntrl:]]* ]] || fail "a line break or another control character stands in: $word"
    word=${word//\\/\\\\}
    list+=", \"${word//\"/\\\"}\""
  done
  printf '[%s]' "${list#, }"
}

# must_fit: fails for a value that would not be the text it is in YAML, or no name in Kubernetes.
must_fit() {
  local flag
  for flag in name claim accelerator; do
    [[ ${!flag} =~ ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--$flag=${!flag}: a-z, 0-9 and - are expected"
  done
  ((${#name} <= 40)) || fail "--name=$name: 40 characters at most" # pods' names are longer by 20
  [[ $image =~ ^[A-Za-z0-9][-A-Za-z0-9._/:@]*$ ]] || fail "--image=$image is not the name of an image"
  [[ $topology =~ ^([0-9]+x[0-9]+(x[0-9]+)?)?$ ]] || fail "--topology=$topology: 2x4 or 2x2x4 is expected"
  [[ $mount =~ ^/[-A-Za-z0-9._/]+$ ]] || fail "--mount=$mount is not an absolute path"
  local positive
  for positive in hosts chips slices; do
    ((${!positive} > 0)) || fail "--$positive=0: 1 or more is expected"
  done
  [[ $kind == tpu ]] || ((slices == 1)) || fail "--slices=$slices is for --kind=tpu"
}

parse_action "build render apply status logs delete" \
  "image name kind accelerator topology hosts chips slices spot! claim mount restarts" "$@"
case $kind in
  cuda) accelerator=${accelerator:-nvidia-l4} ;;
  tpu) accelerator=${accelerator:-tpu-v5-lite-podslice} topology=${topology:-2x4} ;;
  *) fail "--kind=$kind: cuda or tpu is expected" ;;
esac
must_be_set name claim mount
must_be_whole hosts chips slices restarts
case $action in build | render | apply) must_be_set image ;; *) image=${image:-none} ;; esac
must_fit
case $action in render | apply) must_train ;; esac
case $action in
  build) need docker "see https://docs.docker.com/get-docker" ;;
  render) ;;
  *) need kubectl "see https://kubernetes.io/docs/tasks/tools" ;;
esac

case $action in
  build)
    run docker build --file="$here/gke/Dockerfile" --build-arg=EXTRA="$kind" \
      --build-arg=JAX_VERSION="$JAX_VERSION" --tag="$image" "${here%/*}"
    run docker push "$image"
    ;;
  render) render ;;
  apply)
    manifest=$(render)
    [[ $dry_run == false ]] || printf '%s\n' "$manifest"
    run kubectl apply --filename=- <<<"$manifest"
    ;;
  status) run kubectl get jobsets,pods --selector=jobset.sigs.k8s.io/jobset-name="$name" ;;
  logs) run kubectl logs --follow --tail=200 --selector="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0" ;;
  delete) run kubectl delete jobset "$name" ;;
esac
