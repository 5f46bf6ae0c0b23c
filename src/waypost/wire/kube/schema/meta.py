"""Messages of `meta/v1`: metadata, selectors, options and statuses."""

from __future__ import annotations

from typing import Final

from waypost.wire.kube.schema.types import Message, field, message

MESSAGES: Final[tuple[Message, ...]] = (
    message(
        "meta.ObjectMeta", "What every stored object has, whatever its kind.",
        field("name", 1, "string", "Name of the object; unique among its kind in its namespace; cannot be changed."),
        field("generateName", 2, "string", "Beginning of a name that the server completes with random characters; used if name is empty."),
        field("namespace", 3, "string", "Namespace the object lies in; empty for kinds that belong to the whole cluster."),
        field("selfLink", 4, "string", "No longer filled in."),
        field("uid", 5, "string", "Identity of this very object, given by the server; a new object of the same name has another."),
        field("resourceVersion", 6, "string", "Revision of the last change; an update that carries it succeeds only if it is still current."),
        field("generation", 7, "int64", "Counts changes of the desired state."),
        field("creationTimestamp", 8, "time", "When the server created the object."),
        field("deletionTimestamp", 9, "time", "Set once deletion was asked for; the object goes when its finalizers are gone.", pointer=True),
        field("deletionGracePeriodSeconds", 10, "int64", "Seconds the object has to end by itself.", pointer=True),
        field("labels", 11, "{string}", "Keys and values to select and group objects by."),
        field("annotations", 12, "{string}", "Keys and values that tools keep with the object; not for selection."),
        field("ownerReferences", 13, "[meta.OwnerReference]", "Objects this one depends on.", merge_key="uid"),
        field("finalizers", 14, "[string]", "Names that must all be taken away before a deleted object goes.", merge=True, list_type="set"),
        field("managedFields", 17, "[meta.ManagedFieldsEntry]", "Which manager set which fields; kept by the server."),
    ),
    message(
        "meta.OwnerReference", "Points from an object to one that owns it, in the same namespace.",
        field("apiVersion", 5, "string", "API version of the owner.", required=True, keep=True),
        field("kind", 1, "string", "Kind of the owner.", required=True, keep=True),
        field("name", 3, "string", "Name of the owner.", required=True, keep=True),
        field("uid", 4, "string", "UID of the owner.", required=True, keep=True),
        field("controller", 6, "bool", "Whether the owner is the managing controller.", pointer=True),
        field("blockOwnerDeletion", 7, "bool", "Whether a foreground deletion of the owner waits for this object.", pointer=True),
        atomic=True,
    ),
    message(
        "meta.ManagedFieldsEntry", "Fields one manager owns, and how it got them.",
        field("manager", 1, "string", "Name of the program."),
        field("operation", 2, "string", "Apply or Update.", enum=("Apply", "Update")),
        field("apiVersion", 3, "string", "API version the fields are named in."),
        field("time", 4, "time", "Last time the set of fields changed.", pointer=True),
        field("fieldsType", 6, "string", "Always FieldsV1."),
        field("fieldsV1", 7, "fields", "The fields as a tree.", pointer=True),
        field("subresource", 8, "string", "Subresource through which it was written."),
    ),
    message(
        "meta.LabelSelector", "A condition on labels; all of its parts must hold, and none selects everything.",
        field("matchLabels", 1, "{string}", "Labels that must be there with these values."),
        field("matchExpressions", 2, "[meta.LabelSelectorRequirement]", "Further conditions."),
        atomic=True,
    ),
    message(
        "meta.LabelSelectorRequirement", "A condition on one label.",
        field("key", 1, "string", "Key of the label.", required=True, keep=True),
        field("operator", 2, "string", "In, NotIn, Exists or DoesNotExist.", required=True, keep=True, enum=("DoesNotExist", "Exists", "In", "NotIn")),
        field("values", 3, "[string]", "Values for In and NotIn; must be empty for the others."),
    ),
    message(
        "meta.FieldSelectorRequirement", "A condition on one field.",
        field("key", 1, "string", "Path of the field.", required=True, keep=True),
        field("operator", 2, "string", "In, NotIn, Exists or DoesNotExist.", required=True, keep=True),
        field("values", 3, "[string]", "Values for In and NotIn."),
    ),
    message(
        "meta.ListMeta", "What lists have instead of ObjectMeta.",
        field("selfLink", 1, "string", "No longer filled in."),
        field("resourceVersion", 2, "string", "Revision the list shows."),
        field("continue", 3, "string", "Token for the rest of a list that was cut by limit."),
        field("remainingItemCount", 4, "int64", "How many objects are left after this page.", pointer=True),
    ),
    message(
        "meta.Preconditions", "What must hold for a deletion to happen.",
        field("uid", 1, "string", "UID the object must have.", pointer=True),
        field("resourceVersion", 2, "string", "Revision the object must have.", pointer=True),
    ),
    Message(
        name="io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
        doc="How to delete an object.",
        fields=(
            field("gracePeriodSeconds", 1, "int64", "Seconds until the object goes; 0 at once.", pointer=True),
            field("preconditions", 2, "meta.Preconditions", "What must hold before.", pointer=True),
            field("orphanDependents", 3, "bool", "Deprecated; propagationPolicy says it.", pointer=True),
            field("propagationPolicy", 4, "string", "What becomes of dependent objects: Orphan, Background or Foreground.", pointer=True),
            field("dryRun", 5, "[string]", "All: check everything, change nothing."),
            field("ignoreStoreReadErrorWithClusterBreakingPotential", 6, "bool", "Delete what cannot be read any more.", pointer=True),
        ),
        is_kind=True,
    ),
    Message(
        name="io.k8s.apimachinery.pkg.apis.meta.v1.Status",
        doc="Outcome of a request that has no other answer.",
        fields=(
            field("metadata", 1, "meta.ListMeta", "Bookkeeping."),
            field("status", 2, "string", "Success or Failure."),
            field("message", 3, "string", "Explanation for people."),
            field("reason", 4, "string", "Explanation for programs, one word."),
            field("details", 5, "meta.StatusDetails", "What it is about.", pointer=True),
            field("code", 6, "int32", "HTTP status code."),
        ),
        is_kind=True,
    ),
    message(
        "meta.StatusDetails", "What a status is about.",
        field("name", 1, "string", "Name of the object."),
        field("group", 2, "string", "API group of the object."),
        field("kind", 3, "string", "Resource or kind of the object."),
        field("uid", 6, "string", "UID of the object."),
        field("causes", 4, "[meta.StatusCause]", "Single reasons."),
        field("retryAfterSeconds", 5, "int32", "Seconds after which to try again."),
    ),
    message(
        "meta.StatusCause", "One of several reasons.",
        field("reason", 1, "string", "One word."),
        field("message", 2, "string", "Explanation for people."),
        field("field", 3, "string", "Path of the field at fault."),
    ),
)  # fmt: skip
