"""EPS messages: HL7-like XML, about as long and as repetitive as the real ones."""

from __future__ import annotations

import base64
import random
from typing import NamedTuple

from .people import PHRASES, phrases, uuid


class Line(NamedTuple):
    """One prescribed item, as messages show it."""

    uuid: str
    product_code: int
    name: str
    quantity: int
    dose: str


class Facts(NamedTuple):
    """What a prescription's messages have in common."""

    eps_id: str
    nhs_number: str
    title: str
    forename: str
    surname: str
    address: str
    postcode: str
    born: str
    sex: str
    prescriber: str
    surgery: str
    ods_code: str
    at: str


_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<{root} xmlns="urn:hl7-org:v3" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
 xmlns:fo="http://www.w3.org/1999/XSL/Format" xsi:schemaLocation="urn:hl7-org:v3 ../Schemas/{root}.xsd">
  <id root="{u[0]}"/>
  <creationTime value="{stamp}"/>
  <versionCode code="3NPfIT7.2.00"/>
  <interactionId root="2.16.840.1.113883.2.1.3.2.4.12" extension="{root}"/>
  <processingCode code="P"/>
  <processingModeCode code="T"/>
  <acceptAckCode code="NE"/>
  <communicationFunctionRcv typeCode="RCV">
    <device classCode="DEV" determinerCode="INSTANCE">
      <id root="1.2.826.0.1285.0.2.0.107" extension="567456789789"/>
    </device>
  </communicationFunctionRcv>
  <communicationFunctionSnd typeCode="SND">
    <device classCode="DEV" determinerCode="INSTANCE">
      <id root="1.2.826.0.1285.0.2.0.107" extension="999000{ods}"/>
    </device>
  </communicationFunctionSnd>
  <ControlActEvent classCode="CACT" moodCode="EVN">
    <author typeCode="AUT">
      <AgentPersonSDS classCode="AGNT">
        <id root="1.2.826.0.1285.0.2.0.67" extension="{sds}"/>
        <agentPersonSDS classCode="PSN" determinerCode="INSTANCE">
          <id root="1.2.826.0.1285.0.2.0.65" extension="{user}"/>
        </agentPersonSDS>
        <part typeCode="PART">
          <partSDSRole classCode="ROL">
            <id root="1.2.826.0.1285.0.2.1.104" extension="R8003"/>
          </partSDSRole>
        </part>
      </AgentPersonSDS>
    </author>
    <author1 typeCode="AUT">
      <AgentSystemSDS classCode="AGNT">
        <agentSystemSDS classCode="DEV" determinerCode="INSTANCE">
          <id root="1.2.826.0.1285.0.2.0.107" extension="200000{ods}"/>
        </agentSystemSDS>
      </AgentSystemSDS>
    </author1>
    <subject typeCode="SUBJ" contextConductionInd="false">
"""
_SUBJECT = """      <{name} classCode="INFO" moodCode="EVN">
        <id root="{u[1]}"/>
        <code code="{code}" codeSystem="2.16.840.1.113883.2.1.3.2.4.17.201" displayName="{display}"/>
        <effectiveTime value="{stamp}"/>
        <typeId root="2.16.840.1.113883.2.1.3.2.4.18.7" extension="{type_id}"/>
        <recordTarget typeCode="RCT">
          <Patient classCode="PAT">
            <id root="2.16.840.1.113883.2.1.4.1" extension="{f.nhs_number}"/>
            <addr use="H">
              <streetAddressLine>{f.address}</streetAddressLine>
              <postalCode>{f.postcode}</postalCode>
              <addressKey>{key}</addressKey>
            </addr>
            <patientPerson classCode="PSN" determinerCode="INSTANCE">
              <name use="L"><prefix>{f.title}</prefix><given>{f.forename}</given><family>{f.surname}</family></name>
              <administrativeGenderCode code="{f.sex}"/>
              <birthTime value="{born}"/>
              <playedProviderPatient classCode="PAT">
                <subjectOf typeCode="SBJ">
                  <patientCareProvisionEvent classCode="PCPR" moodCode="EVN">
                    <code code="1" codeSystem="2.16.840.1.113883.2.1.3.2.4.17.37"/>
                    <responsibleParty typeCode="RESP">
                      <healthCareProvider classCode="PROV"><id root="1.2.826.0.1285.0.1.10" extension="Y9{sds4}"/>
                      </healthCareProvider>
                    </responsibleParty>
                  </patientCareProvisionEvent>
                </subjectOf>
              </playedProviderPatient>
            </patientPerson>
          </Patient>
        </recordTarget>
        <author typeCode="AUT" contextControlCode="OP">
          <time value="{stamp}"/>
          <AgentPerson classCode="AGNT">
            <id root="1.2.826.0.1285.0.2.0.67" extension="{sds}"/>
            <code code="R8000" codeSystem="1.2.826.0.1285.0.2.1.104"/>
            <telecom value="tel:01632960{tel}" use="WP"/>
            <agentPerson classCode="PSN" determinerCode="INSTANCE">
              <id root="1.2.826.0.1285.0.2.1.54" extension="{user}"/>
              <name><given>{f.prescriber}</given></name>
            </agentPerson>
            <representedOrganization classCode="ORG" determinerCode="INSTANCE">
              <id root="1.2.826.0.1285.0.1.10" extension="{f.surgery}"/>
              <code code="001" codeSystem="2.16.840.1.113883.2.1.3.2.4.17.94"/>
              <name>{f.surgery}</name>
            </representedOrganization>
          </AgentPerson>
        </author>
        <pertinentInformation1 typeCode="PERT" contextConductionInd="true">
          <templateId root="2.16.840.1.113883.2.1.3.2.4.18.2" extension="CSAB_RM-NPfITUK10.pertinentInformation"/>
          <pertinentPrescription classCode="SBADM" moodCode="RQO">
            <id root="{u[2]}"/>
            <id root="2.16.840.1.113883.2.1.3.2.4.18.8" extension="{f.eps_id}"/>
            <code code="225426007" codeSystem="2.16.840.1.113883.2.1.3.2.4.15"/>
            <effectiveTime nullFlavor="NA"/>
"""
_REASON = """            <pertinentInformation{n} typeCode="PERT" contextConductionInd="true">
              <seperatableInd value="false"/>
              <pertinent{kind} classCode="OBS" moodCode="EVN">
                <code code="{code}" codeSystem="2.16.840.1.113883.2.1.3.2.4.17.30"/>
                <effectiveTime value="{stamp}"/>
                <value code="{value:04d}" codeSystem="2.16.840.1.113883.2.1.3.2.4.17.{system}"/>
              </pertinent{kind}>
            </pertinentInformation{n}>
"""
_ITEM = """            <pertinentInformation2 typeCode="PERT" inversionInd="false" contextConductionInd="true">
              <seperatableInd value="true"/>
              <templateId root="2.16.840.1.113883.2.1.3.2.4.18.2" extension="CSAB_RM-NPfITUK10.sourceOf2"/>
              <pertinentLineItem classCode="SBADM" moodCode="RQO">
                <id root="{line.uuid}"/>
                <code code="225426007" codeSystem="2.16.840.1.113883.2.1.3.2.4.15"/>
                <effectiveTime nullFlavor="NA"/>
                <repeatNumber><low value="{low}"/><high value="6"/></repeatNumber>
                <product typeCode="PRD" contextControlCode="OP">
                  <manufacturedProduct classCode="MANU">
                    <manufacturedRequestedMaterial classCode="MMAT" determinerCode="KIND">
                      <code code="{line.product_code}" codeSystem="2.16.840.1.113883.2.1.3.2.4.15"
                       displayName="{line.name}"/>
                    </manufacturedRequestedMaterial>
                  </manufacturedProduct>
                </product>
                <component typeCode="COMP">
                  <seperatableInd value="false"/>
                  <lineItemQuantity classCode="SPLY" moodCode="RQO">
                    <code code="373784005" codeSystem="2.16.840.1.113883.2.1.3.2.4.15"/>
                    <quantity value="{line.quantity}" unit="1">
                      <translation value="{line.quantity}" code="428673006" displayName="tablet"
                       codeSystem="2.16.840.1.113883.2.1.3.2.4.15"/>
                    </quantity>
                  </lineItemQuantity>
                </component>
"""
_DOSE = """                <pertinentInformation1 typeCode="PERT" contextConductionInd="true">
                  <seperatableInd value="false"/>
                  <pertinentAdditionalInstructions classCode="OBS" moodCode="EVN">
                    <code code="AI" codeSystem="2.16.840.1.113883.2.1.3.2.4.17.30"/>
                    <value>{note}</value>
                  </pertinentAdditionalInstructions>
                </pertinentInformation1>
                <pertinentInformation2 typeCode="PERT" contextConductionInd="true">
                  <seperatableInd value="false"/>
                  <pertinentDosageInstructions classCode="OBS" moodCode="EVN">
                    <code code="DI" codeSystem="2.16.840.1.113883.2.1.3.2.4.17.30"/>
                    <value>{line.dose}</value>
                  </pertinentDosageInstructions>
                </pertinentInformation2>
"""
_STATUS = """                <pertinentInformation3 typeCode="PERT" contextConductionInd="true">
                  <seperatableInd value="false"/>
                  <pertinentItemStatus classCode="OBS" moodCode="EVN">
                    <code code="IS" codeSystem="2.16.840.1.113883.2.1.3.2.4.17.30"/>
                    <value code="0001" codeSystem="2.16.840.1.113883.2.1.3.2.4.17.23"
                     displayName="Item fully dispensed"/>
                  </pertinentItemStatus>
                </pertinentInformation3>
                <inFulfillmentOf1 typeCode="FLFS" inversionInd="false" negationInd="false">
                  <priorOriginalItemRef classCode="SBADM" moodCode="RQO"><id root="{other}"/></priorOriginalItemRef>
                </inFulfillmentOf1>
"""
_ITEM_END = """              </pertinentLineItem>
            </pertinentInformation2>
"""
_SIGNATURE = """            <author typeCode="AUT" contextControlCode="OP">
              <time value="{stamp}"/>
              <signatureText><Signature xmlns="http://www.w3.org/2000/09/xmldsig#"><SignedInfo>
                <CanonicalizationMethod Algorithm="http://www.w3.org/2001/10/xml-exc-c14n#"/>
                <SignatureMethod Algorithm="http://www.w3.org/2000/09/xmldsig#rsa-sha256"/>
                <Reference><Transforms><Transform Algorithm="http://www.w3.org/2001/10/xml-exc-c14n#"/></Transforms>
                <DigestMethod Algorithm="http://www.w3.org/2000/09/xmldsig#sha256"/>
                <DigestValue>{digest}</DigestValue></Reference></SignedInfo>
                <SignatureValue>{signature}</SignatureValue>
                <KeyInfo><X509Data><X509Certificate>{certificate}</X509Certificate></X509Data></KeyInfo>
              </Signature></signatureText>
              <signatureCode code="S"/>
            </author>
"""
_PERFORMER = """            <performer typeCode="PRF" contextControlCode="OP">
              <AgentOrgSDS classCode="AGNT">
                <agentOrganizationSDS classCode="ORG" determinerCode="INSTANCE">
                  <id root="1.2.826.0.1285.0.1.10" extension="{ods}"/>
                </agentOrganizationSDS>
              </AgentOrgSDS>
            </performer>
            <legalAuthenticator typeCode="LA" contextControlCode="OP">
              <time value="{stamp}"/>
              <AgentPerson classCode="AGNT">
                <id root="1.2.826.0.1285.0.2.0.67" extension="{sds}"/>
                <code code="R8000" codeSystem="1.2.826.0.1285.0.2.1.104"/>
                <agentPerson classCode="PSN" determinerCode="INSTANCE">
                  <id root="1.2.826.0.1285.0.2.1.54" extension="{user}"/>
                  <name><given>{f.prescriber}</given></name>
                </agentPerson>
              </AgentPerson>
            </legalAuthenticator>
            <component1 typeCode="COMP">
              <seperatableInd value="true"/>
              <daysSupply classCode="SPLY" moodCode="RQO">
                <code code="373784005" codeSystem="2.16.840.1.113883.2.1.3.2.4.15"/>
                <effectiveTime><low value="{stamp}"/></effectiveTime>
                <expectedUseTime><width value="28" unit="d"/></expectedUseTime>
              </daysSupply>
            </component1>
"""
_TAIL = """          </pertinentPrescription>
        </pertinentInformation1>
      </{name}>
    </subject>
  </ControlActEvent>
</{root}>
"""
_RELEASE = """      <NominatedPrescriptionReleaseRequest classCode="INFO" moodCode="RQO">
        <id root="{u[1]}"/>
        <code code="01" codeSystem="2.16.840.1.113883.2.1.3.2.4.17.205"/>
        <effectiveTime value="{stamp}"/>
        <author typeCode="AUT">
          <time value="{stamp}"/>
          <AgentPerson classCode="AGNT">
            <id root="1.2.826.0.1285.0.2.0.67" extension="{sds}"/>
            <telecom value="tel:01632960{tel}" use="WP"/>
            <representedOrganization classCode="ORG" determinerCode="INSTANCE">
              <id root="1.2.826.0.1285.0.1.10" extension="{f.ods_code}"/>
              <name>The Sample Pharmacy</name>
            </representedOrganization>
          </AgentPerson>
        </author>
        <pertinentInformation typeCode="PERT">
          <pertinentPrescriptionID><value root="2.16.840.1.113883.2.1.3.2.4.18.8" extension="{f.eps_id}"/>
          </pertinentPrescriptionID>
        </pertinentInformation>
        <verifier note="{note}"/>
      </NominatedPrescriptionReleaseRequest>
    </subject>
  </ControlActEvent>
</{root}>
"""


class _Shape(NamedTuple):
    root: str
    name: str
    code: str
    display: str
    reasons: int
    dose: bool
    status: bool
    signed: bool


_SHAPES = {
    "prescription": _Shape(
        root="PORX_IN020101SM31",
        name="ParentPrescription",
        code="163501000000109",
        display="Prescription",
        reasons=5,
        dose=True,
        status=False,
        signed=True,
    ),
    "dispense": _Shape(
        root="PORX_IN080101SM31",
        name="DispenseNotification",
        code="163541000000107",
        display="Dispensed",
        reasons=2,
        dose=False,
        status=True,
        signed=False,
    ),
    "claim": _Shape(
        root="PORX_IN090101SM31",
        name="DispenseClaim",
        code="163551000000105",
        display="Dispensed claim",
        reasons=1,
        dose=False,
        status=True,
        signed=False,
    ),
}
KINDS = ("release", *_SHAPES)
_REASONS = ("PrescriptionTreatmentType", "DispensingSitePreference", "TokenIssued", "PrescriptionType", "ReviewDate")


def _base64(rng: random.Random, size: int) -> str:
    return base64.b64encode(rng.randbytes(size)).decode()


def certificate(prescriber: str) -> str:
    """The signing certificate of a prescriber: always the same for the same name."""
    return _base64(random.Random(f"certificate/{prescriber}"), 1100)


_certificates: dict[str, str] = {}


def message(rng: random.Random, kind: str, facts: Facts, lines: list[Line]) -> tuple[str, str]:
    """The UUID and the XML text of one message of this kind about a prescription."""
    ids = [uuid(rng) for _ in range(3)]
    who = random.Random(facts.prescriber)
    stamp = "".join(c for c in facts.at if c.isdigit())
    common = {
        "u": ids,
        "f": facts,
        "stamp": stamp,
        "ods": facts.ods_code,
        "sds": who.randrange(10**11, 10**12),
        "sds4": who.randrange(1000, 10_000),
        "user": who.randrange(10**11, 10**12),
        "tel": who.randrange(100, 1000),
    }
    if kind == "release":
        root = "PORX_IN060102SM30"
        text = _HEAD + _RELEASE
        return ids[0], text.format(root=root, note=phrases(rng, 580), **common)
    shape = _SHAPES[kind]
    head = (_HEAD + _SUBJECT).format(
        root=shape.root,
        name=shape.name,
        code=shape.code,
        display=shape.display,
        type_id=f"{shape.root[:4]}_MT{shape.root[7:13]}UK31",
        key=f"{rng.randrange(10**8):08d}",
        born=facts.born.replace("-", ""),
        **common,
    )
    parts = [head]
    for n in range(shape.reasons):
        parts.append(
            _REASON.format(
                n=n + 3, kind=_REASONS[n], code="PRTT"[: n + 1], stamp=stamp, value=rng.randrange(1, 4), system=n + 33
            )
        )
    for line in lines:
        parts.append(_ITEM.format(line=line, low=rng.randrange(1, 7)))
        if shape.dose:
            parts.append(_DOSE.format(line=line, note="; ".join(rng.choices(PHRASES, k=4))))
        if shape.status:
            parts.append(_STATUS.format(other=uuid(rng)))
        parts.append(_ITEM_END)
    if shape.signed:
        parts.append(_PERFORMER.format(**common))
        if facts.prescriber not in _certificates:
            _certificates[facts.prescriber] = certificate(facts.prescriber)
        parts.append(
            _SIGNATURE.format(
                stamp=stamp,
                digest=_base64(rng, 32),
                signature=_base64(rng, 256),
                certificate=_certificates[facts.prescriber],
            )
        )
    parts.append(_TAIL.format(name=shape.name, root=shape.root))
    return ids[0], "".join(parts)
