#!/usr/bin/env bash
# Trains on Google Kubernetes Engine as a JobSet: one pod per machine; all pods start and restart together.
#
#   launch/gke.sh ACTION [flags] [-- --config=FILE --workdir=DIR ...]
#
#   build     builds the image from this checkout and pushes it (docker)
#   render    prints the manifest of the run given after --
#   apply     starts the run (kubectl)        status    lists its JobSet and pods
#   logs      follows process 0's log         delete    sends SIGTERM: the run saves a checkpoint and exits
#
#   --image=REGISTRY/NAME:TAG            where `build` pushes the image and pods pull it
#   --name=bloodjax                      the JobSet's name
#   --kind=cuda                          cuda, or tpu
#   --accelerator= --topology=           default: nvidia-l4 (cuda), or tpu-v5-lite-podslice and 2x4 (tpu)
#   --hosts=1 --chips=1 --slices=1       pods per slice, GPUs or TPU chips per pod, TPU slices
#   --spot                               use spot nodes
#   --service-account=default            Kubernetes service account, which may read and write the bucket of the workdir
#   --claim= --mount=/mnt/bloodjax       volume claim (gke/storage.yaml) that all pods mount, if there is no bucket; the path
#   --restarts=20                        how often the run may be restarted
#   --dry-run                            prints the commands and does not run them

set -euo pipefail
shopt -s inherit_errexit # what fails in $(render) and in $(yaml_list) ends the script
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/lib.sh"

image='' name=bloodjax kind=cuda accelerator='' topology='' hosts=1 chips=1 slices=1 spot=''
claim='' mount=/mnt/bloodjax service_account=default

# render: prints the manifest.
render() {
  local manifest variable args=("${arguments[@]//\$\(/\$\$\(}") # Kubernetes would expand $(NAME)
  declare -A values=([NAME]=$name [RESTARTS]=$restarts [SLICES]=$slices [HOSTS]=$hosts [CHIPS]=$chips
    [IMAGE]=$image [ACCOUNT]=$service_account [ANNOTATIONS]="{}" [TOLERATIONS]="[]")
  # NCCL and the data workers need more shared memory than the default 64 MiB.
  values[MOUNTS]='{name: memory, mountPath: /dev/shm}'
  values[VOLUMES]='{name: memory, emptyDir: {medium: Memory}}'
  if [[ -n $claim ]]; then
    values[MOUNTS]+=", {name: share, mountPath: \"$mount\"}"
    values[VOLUMES]+=", {name: share, persistentVolumeClaim: {claimName: \"$claim\"}}"
  fi
  values[MOUNTS]="[${values[MOUNTS]}]" values[VOLUMES]="[${values[VOLUMES]}]"
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
  # Each slice gets its own node pool.
  ((slices == 1)) ||
    values[ANNOTATIONS]='{alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool}'
  values[NODES]="{${values[NODES]}}"
  values[ARGS]=$(yaml_list "${args[@]}")
  manifest=$(sed 1d "$here/gke/jobset.yaml") # without the comment about the template
  # ARGS last, so that a ${NAME} within the run's flags is not replaced.
  for variable in $(printf '%s\n' "${!values[@]}" | grep -vx ARGS) ARGS; do
    manifest=${manifest//"\${$variable}"/"${values[$variable]}"}
  done
  printf '%s\n' "$manifest"
}

# yaml_list WORD...: prints the words as a YAML list of strings.
yaml_list() {
  local word list=''
  for word in "$@"; do
    [[ $word != *[[:cntrl:]]* ]] || fail "control character in: $word"
    word=${word//\\/\\\\}
    list+=", \"${word//\"/\\\"}\""
  done
  printf '[%s]' "${list#, }"
}

# must_fit: fails for a value that YAML would read as something else, or that Kubernetes rejects as a name.
must_fit() {
  local flag
  for flag in name ${claim:+claim} service_account accelerator; do
    [[ ${!flag} =~ ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--${flag//_/-}=${!flag}: expected a-z, 0-9 and -"
  done
  ((${#name} <= 40)) || fail "--name=$name: expected at most 40 characters" # names of pods are 20 characters longer
  [[ $image =~ ^[A-Za-z0-9][-A-Za-z0-9._/:@]*$ ]] || fail "--image=$image is not the name of an image"
  [[ $topology =~ ^([0-9]+x[0-9]+(x[0-9]+)?)?$ ]] || fail "--topology=$topology: expected a form like 2x4 or 2x2x4"
  [[ $mount =~ ^/[-A-Za-z0-9._/]+$ ]] || fail "--mount=$mount is not an absolute path"
  local positive
  for positive in hosts chips slices; do
    ((${!positive} > 0)) || fail "--$positive=0: expected at least 1"
  done
  [[ $kind == tpu ]] || ((slices == 1)) || fail "--slices=$slices requires --kind=tpu"
}

parse_action "build render apply status logs delete" \
  "image name kind accelerator topology hosts chips slices spot! service-account claim mount restarts" "$@"
case $kind in
  cuda) accelerator=${accelerator:-nvidia-l4} ;;
  tpu) accelerator=${accelerator:-tpu-v5-lite-podslice} topology=${topology:-2x4} ;;
  *) fail "--kind=$kind: expected cuda or tpu" ;;
esac
must_be_set name mount service_account
must_be_integer hosts chips slices restarts
case $action in build | render | apply) must_be_set image ;; *) image=${image:-none} ;; esac
must_fit
case $action in
  render | apply)
    must_train
    [[ $in_bucket == true || -n $claim ]] ||
      fail "the workdir is in the pod, which does not last: expected --workdir=gs://BUCKET/NAME, or --claim"
    ;;
esac
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
