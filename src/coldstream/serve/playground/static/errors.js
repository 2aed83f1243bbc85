// What an error of the server's means, in languages that the server does not speak. It speaks English, which stays beside
// it. First by the message, which holds what to mend; else by the kind.

import { current } from "./words.js";

const MESSAGES = {
  ko: [
    [/^(?:inputs\.)?(.+?) is missing; task '(.+?)'/, "작업 {2}에는 {1} 값이 필요합니다."],
    [/^image is missing; task '(.+?)' takes (\d+)/, "작업 {1}에는 사진 {2}장이 필요합니다."],
    [/^(\S+) is missing$/, "{1} 값이 빠졌습니다."],
    [/^(\S+) = .* is not one of: (.*)$/s, "{1}에는 다음 중 하나를 넣어 주세요: {2}"],
    [/^(\S+): a valid (?:number|integer)\b.*, not (.*)$/s, "{1}에는 숫자를 넣어 주세요. 받은 값: {2}"],
    [/^(\S+): less than or equal to (\S+), not (.*)$/s, "{1}에는 {2} 이하의 값을 넣어 주세요. 받은 값: {3}"],
    [/^(\S+): greater than or equal to (\S+), not (.*)$/s, "{1}에는 {2} 이상의 값을 넣어 주세요. 받은 값: {3}"],
    [/^(\S+): greater than (\S+), not (.*)$/s, "{1}에는 {2}보다 큰 값을 넣어 주세요. 받은 값: {3}"],
    [/model '(.+?)' takes text only/, "모델 {1}은(는) 글만 받습니다. 사진을 빼 주세요."],
    [/^task '(.+?)' takes no image/, "작업 {1}은(는) 사진을 받지 않습니다."],
    [/^task '(.+?)' takes (\d+) images?, but (\d+) came/, "작업 {1}은(는) 사진을 {2}장까지 받는데 {3}장이 왔습니다."],
    [/larger than (\d+) bytes, the most for an image/, "사진이 너무 큽니다. {1}바이트까지 받습니다."],
    [/the (\S+) image is broken or cut off/, "{1} 사진이 깨졌거나 잘렸습니다. 다른 파일을 보내 주세요."],
    [/more than (\d+) pixels/, "사진의 픽셀이 너무 많습니다. {1}픽셀까지 받습니다."],
    [/^the prompt has (\d+) tokens/, "프롬프트가 {1}토큰이라 모델의 컨텍스트에 들어가지 않습니다. 더 짧게 써 주세요."],
    [/^the prompt (?:is empty|has no tokens)/, "프롬프트가 비어 있습니다."],
    [/^the prompt has (\d+) characters/, "프롬프트가 {1}자라 모델의 컨텍스트에 들어가지 않습니다. 더 짧게 써 주세요."],
  ],
};

const KINDS = {
  ko: {
    rate_limit_exceeded: "요청이 너무 많아 지금은 받을 수 없습니다.",
    TooManyRequests: "요청이 너무 많아 지금은 받을 수 없습니다.",
    not_ready: "모델이 아직 준비되지 않았거나 서버가 종료되는 중입니다.",
    NotReady: "모델이 아직 준비되지 않았거나 서버가 종료되는 중입니다.",
    context_length_exceeded: "프롬프트가 모델의 컨텍스트에 들어가지 않습니다. 더 짧게 써 주세요.",
    PromptTooLong: "프롬프트가 모델의 컨텍스트에 들어가지 않습니다. 더 짧게 써 주세요.",
    model_not_found: "그런 모델이나 작업은 이 서버에 없습니다.",
    UnknownTask: "그런 모델이나 작업은 이 서버에 없습니다.",
    DeadlineExceeded: "허용된 시간 안에 답을 끝내지 못했습니다.",
    TooCostly: "요청을 처리하는 데 드는 일이 허용된 한도를 넘습니다.",
    EngineError: "엔진에 오류가 생겼습니다. 자세한 내용은 서버 로그에 있습니다.",
    server_error: "서버에 오류가 생겼습니다. 자세한 내용은 서버 로그에 있습니다.",
    LocationError: "모델의 주소를 읽을 수 없습니다.",
    MissingExtra: "이 모델에 필요한 패키지가 설치되어 있지 않습니다.",
    StoreError: "저장소에서 모델을 읽지 못했습니다.",
    ObjectNotFound: "저장소에 모델 파일이나 폴더가 없습니다. 주소를 확인해 주세요.",
    AccessDenied: "저장소가 읽기를 거부했습니다. 권한을 확인해 주세요.",
    StoreUnavailable: "저장소가 응답하지 않습니다.",
    ObjectChanged: "불러오는 동안 저장소의 파일이 바뀌었습니다.",
    ChecksumMismatch: "받은 바이트의 체크섬이 저장소의 것과 다릅니다.",
    BadResponse: "저장소의 응답을 이해할 수 없습니다.",
    CheckpointError: "체크포인트에 문제가 있습니다.",
    NoConfig: "폴더에 config.json이 없습니다.",
    NoWeights: "폴더에 safetensors 파일이 없습니다.",
    ShardMissing: "인덱스에 적힌 파일이 폴더에 없습니다.",
    HeaderError: "safetensors 파일의 헤더가 올바르지 않습니다.",
    IndexMismatch: "인덱스와 파일의 내용이 서로 다릅니다.",
    UnsafeName: "인덱스에 허용되지 않는 파일 이름이 있습니다.",
    CopyRefused: "패킹된 사본이 손상되었거나 다른 체크포인트로 만든 것입니다.",
    ModelError: "이 모델을 만들 수 없습니다.",
    UnknownArchitecture: "지원하지 않는 모델 구조입니다.",
    UnsupportedConfig: "모델 설정에 지원하지 않는 값이 있습니다.",
    ParameterMismatch: "파일의 텐서가 모델 설정과 맞지 않습니다.",
    TokenizerError: "토크나이저를 읽을 수 없습니다.",
    ConvertedUnfit: "변환된 토크나이저가 손상되었거나 원본과 맞지 않습니다.",
    OutOfMemory: "메모리가 모자랍니다.",
    DeviceUnavailable: "요청한 장치를 쓸 수 없습니다.",
  },
};

// "" in English, and for what is not known here.
export function why({ type, message }) {
  for (const [pattern, sentence] of MESSAGES[current()] ?? []) {
    const found = pattern.exec(message);
    if (found !== null) return sentence.replace(/\{(\d)\}/g, (_, place) => found[place]);
  }
  return KINDS[current()]?.[type] ?? "";
}
