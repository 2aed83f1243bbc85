// Every sentence of the page, in English and Korean, and numbers as people write them.

const WORDS = {
  en: {
    "skip": "To the playground",
    "language": "Language",
    "status.connecting": "Connecting",
    "status.loading": "Loading",
    "status.ready": "Ready",
    "status.degraded": "Ready in part",
    "status.failed": "Failed",
    "status.gone": "No answer",
    "status.locked": "Key needed",
    "key.change": "API key",
    "key.title": "This server needs a key",
    "key.why": "It is sent with each request, kept in this tab only, and never part of an address.",
    "key.label": "API key",
    "key.use": "Use this key",
    "key.cancel": "Not now",
    "key.refused": "That key is not one of this server’s. Check it and try again.",
    "start.title": "The start",
    "start.waterfall": "Waterfall: what took how long, from exec",
    "start.loading": "{done} of {total} · {rate}/s · {left} left",
    "start.beginning": "The first bytes are on their way.",
    "start.ready": "Ready {seconds} after exec · {total}",
    "start.gone": "The server does not answer; the page goes on asking.",
    "start.locked": "The key is needed to see the load.",
    "start.total": "From exec to now: {seconds}",
    "start.many": "{count} × {name}",
    "start.at": "{name} at {seconds}",
    "phase.waiting": "waits for its turn",
    "phase.listing": "looks what is in the folder",
    "phase.headers": "reads the headers",
    "phase.streaming": "bytes are landing",
    "phase.verifying": "compares the checksums",
    "phase.assembling": "puts the model together",
    "phase.ready": "ready",
    "phase.failed": "failed",
    "model.progress": "{model}: {phase}",
    "model.bytes": "{done} of {total}",
    "model.rate": "{rate}/s",
    "model.left": "{left} left",
    "model.loaded": "{total} at {rate}/s",
    "model.again": "{retries} retries, {resumes} resumed, {hedges} asked twice",
    "model.unverified": "The store gave no checksum for: {files}",
    "model.failed": "This model could not be loaded.",
    "work.title": "Ask the models",
    "tab.task": "Tasks",
    "tab.chat": "Chat",
    "task.pick": "Task",
    "task.none": "The tasks appear as soon as the server’s API is up.",
    "task.model": "model {model}",
    "task.images": "Photos",
    "task.image": "Photo",
    "task.optional": "optional",
    "task.default": "Left empty: {value}",
    "task.choose": "Choose",
    "task.standard": "Default: {value}",
    "sampling.title": "Sampling",
    "sampling.help": "Left empty, the task’s and the model’s own values hold.",
    "sampling.max_tokens": "Most tokens",
    "sampling.temperature": "Temperature",
    "sampling.top_p": "Top p",
    "sampling.top_k": "Top k",
    "sampling.min_p": "Min p",
    "sampling.repetition_penalty": "Repetition penalty",
    "sampling.presence_penalty": "Presence penalty",
    "sampling.frequency_penalty": "Frequency penalty",
    "sampling.seed": "Seed",
    "sampling.stop": "Stop at (one a line)",
    "run": "Ask",
    "run.keys": "Ctrl + Enter",
    "examples": "Try:",
    "stop": "Stop",
    "answer.title": "Answer",
    "answer.empty": "The answer will stream in here.",
    "answer.waiting": "Waiting for the first token …",
    "answer.loading": "The model is still loading, {left} left; the question waits for it.",
    "answer.first": "to the first token",
    "answer.rate": "tokens/s",
    "answer.tokens": "tokens",
    "answer.prompt": "in the prompt",
    "answer.cached": "{count} of them cached",
    "answer.end.stop": "finished by itself",
    "answer.end.length": "cut at the most tokens",
    "answer.end.cancelled": "cancelled by the server",
    "answer.end.error": "ended by an error",
    "answer.end.you": "stopped by you",
    "answer.end.reload": "broken off by a reload",
    "answer.as.written": "Show as written",
    "answer.as.formatted": "Show formatted",
    "answer.defaulted": "Defaults were used for: {names}",
    "answer.said": "The answer is complete: {tokens} tokens, {rate} a second.",
    "answer.stopped": "Stopped.",
    "answer.nothing": "The model ended without a word.",
    "copy": "Copy",
    "copied": "Copied",
    "copy.text": "Copy the answer",
    "code.title": "As code",
    "code.language": "Language of the code",
    "photo.drop": "Drop a photo here, paste one, or",
    "photo.pick": "choose a file",
    "photo.remove": "Remove {name}",
    "photo.kinds": "JPEG, PNG, WebP or GIF",
    "photo.sample": "Without a photo of yours the server takes this sample.",
    "photo.lost": "{name}: too large to be kept over a reload; it is no longer sent.",
    "photo.not": "{name} is not a picture that the server reads: send JPEG, PNG, WebP or GIF.",
    "photo.many": "{most} at most; {name} was left out.",
    "photo.added": "{name} was added.",
    "photo.removed": "{name} was removed.",
    "chat.model": "Model",
    "chat.system": "System message",
    "chat.message": "Message",
    "chat.send": "Send",
    "chat.keys": "Enter sends, Shift + Enter begins a line",
    "chat.new": "New chat",
    "chat.again": "Answer again",
    "chat.example.1": "What is the capital of France?",
    "chat.example.2": "List three good habits for a healthy life.",
    "chat.example.3": "Explain in two sentences what rain is.",
    "chat.you": "You",
    "chat.none": "None of the models has a chat template.",
    "chat.log": "Conversation",
    "chat.attach": "Add a photo",
    "chat.ready": "Models appear here when they are ready.",
    "engine.title": "The engine, live",
    "engine.waiting": "Figures appear when a model is ready.",
    "engine.running": "Batch",
    "engine.queue": "Queue",
    "engine.speed": "Tokens/s",
    "engine.prompt_speed": "Prompt tokens/s",
    "engine.blocks": "Cache blocks",
    "engine.blocks.text": "{used} in use, {cached} kept for prefixes, of {total}",
    "engine.prefix": "Prefix hits",
    "engine.step": "Step",
    "engine.first": "First token, mean",
    "engine.finished": "Answered",
    "engine.preemptions": "Preempted",
    "engine.errors": "Errors",
    "error.network": "The server does not answer. It may have ended, or the network is down.",
    "error.retry": "Try again in {seconds}.",
    "error.allowed": "Allowed: {values}",
    "error.400": "Something in the request is not right.",
    "error.401": "The key is missing or wrong.",
    "error.404": "There is no such thing here.",
    "error.413": "That is too much.",
    "error.422": "Something in the request is not right.",
    "error.429": "The queue is full.",
    "error.500": "The server has a fault.",
    "error.503": "Not ready yet.",
    "error.504": "That took too long.",
    "error.stream": "The answer broke off.",
  },
  ko: {
    "skip": "플레이그라운드로 이동",
    "language": "언어",
    "status.connecting": "연결 중",
    "status.loading": "불러오는 중",
    "status.ready": "준비 완료",
    "status.degraded": "일부만 준비됨",
    "status.failed": "실패",
    "status.gone": "응답 없음",
    "status.locked": "키 필요",
    "key.change": "API 키",
    "key.title": "이 서버에는 키가 필요합니다",
    "key.why": "키는 요청마다 함께 전송되고 이 탭에만 보관되며 주소에는 들어가지 않습니다.",
    "key.label": "API 키",
    "key.use": "이 키 사용",
    "key.cancel": "나중에",
    "key.refused": "이 서버의 키가 아닙니다. 확인하고 다시 입력해 주세요.",
    "start.title": "시작 과정",
    "start.waterfall": "워터폴: 실행부터 무엇이 얼마나 걸렸는지",
    "start.loading": "{total} 중 {done} · 초당 {rate} · {left} 남음",
    "start.beginning": "첫 바이트를 받는 중입니다.",
    "start.ready": "실행 후 {seconds} 만에 준비 완료 · {total}",
    "start.gone": "서버가 응답하지 않습니다. 계속 다시 시도합니다.",
    "start.locked": "진행 상황을 보려면 키가 필요합니다.",
    "start.total": "실행부터 지금까지: {seconds}",
    "start.many": "{name} {count}개",
    "start.at": "{name}: {seconds} 시점",
    "phase.waiting": "차례를 기다림",
    "phase.listing": "폴더 내용을 확인하는 중",
    "phase.headers": "헤더를 읽는 중",
    "phase.streaming": "바이트를 받는 중",
    "phase.verifying": "체크섬을 비교하는 중",
    "phase.assembling": "모델을 조립하는 중",
    "phase.ready": "준비 완료",
    "phase.failed": "실패",
    "model.progress": "{model}: {phase}",
    "model.bytes": "{total} 중 {done}",
    "model.rate": "초당 {rate}",
    "model.left": "{left} 남음",
    "model.loaded": "{total}, 초당 {rate}",
    "model.again": "재시도 {retries}회, 이어받기 {resumes}회, 중복 요청 {hedges}회",
    "model.unverified": "저장소가 체크섬을 주지 않은 파일: {files}",
    "model.failed": "이 모델을 불러오지 못했습니다.",
    "work.title": "모델에게 묻기",
    "tab.task": "작업",
    "tab.chat": "대화",
    "task.pick": "작업",
    "task.none": "서버의 API가 열리면 작업 목록이 나타납니다.",
    "task.model": "모델 {model}",
    "task.images": "사진",
    "task.image": "사진",
    "task.optional": "선택",
    "task.default": "비워 두면: {value}",
    "task.choose": "선택하세요",
    "task.standard": "기본값: {value}",
    "sampling.title": "샘플링",
    "sampling.help": "비워 두면 작업과 모델의 기본값을 따릅니다.",
    "sampling.max_tokens": "최대 토큰 수",
    "sampling.temperature": "온도",
    "sampling.top_p": "Top p",
    "sampling.top_k": "Top k",
    "sampling.min_p": "Min p",
    "sampling.repetition_penalty": "반복 페널티",
    "sampling.presence_penalty": "존재 페널티",
    "sampling.frequency_penalty": "빈도 페널티",
    "sampling.seed": "시드",
    "sampling.stop": "멈출 문자열 (한 줄에 하나)",
    "run": "요청",
    "run.keys": "Ctrl + Enter",
    "examples": "예시:",
    "stop": "중지",
    "answer.title": "답변",
    "answer.empty": "답변이 여기에 실시간으로 나타납니다.",
    "answer.waiting": "첫 토큰을 기다리는 중 …",
    "answer.loading": "모델을 불러오는 중입니다({left} 남음). 준비되면 바로 답합니다.",
    "answer.first": "첫 토큰까지",
    "answer.rate": "토큰/초",
    "answer.tokens": "토큰",
    "answer.prompt": "프롬프트 토큰",
    "answer.cached": "그중 {count}개는 캐시",
    "answer.end.stop": "스스로 끝냄",
    "answer.end.length": "최대 토큰 수에서 잘림",
    "answer.end.cancelled": "서버가 취소함",
    "answer.end.error": "오류로 끝남",
    "answer.end.you": "사용자가 중지함",
    "answer.end.reload": "새로고침으로 끊김",
    "answer.as.written": "원문 보기",
    "answer.as.formatted": "서식 보기",
    "answer.defaulted": "기본값을 쓴 입력: {names}",
    "answer.said": "답변 완료: {tokens}토큰, 초당 {rate}.",
    "answer.stopped": "중지했습니다.",
    "answer.nothing": "모델이 아무 말 없이 끝냈습니다.",
    "copy": "복사",
    "copied": "복사됨",
    "copy.text": "답변 복사",
    "code.title": "코드로 보기",
    "code.language": "코드 언어",
    "photo.drop": "사진을 끌어다 놓거나 붙여넣거나",
    "photo.pick": "파일 선택",
    "photo.remove": "{name} 빼기",
    "photo.kinds": "JPEG, PNG, WebP, GIF",
    "photo.sample": "사진을 넣지 않으면 서버의 이 예시 사진을 씁니다.",
    "photo.lost": "{name}: 너무 커서 새로고침 뒤에 남지 않았습니다. 더는 보내지 않습니다.",
    "photo.not": "{name}: 서버가 읽을 수 있는 그림이 아닙니다. JPEG, PNG, WebP, GIF를 보내 주세요.",
    "photo.many": "최대 {most}장입니다. {name}은(는) 제외했습니다.",
    "photo.added": "{name}을(를) 추가했습니다.",
    "photo.removed": "{name}을(를) 뺐습니다.",
    "chat.model": "모델",
    "chat.system": "시스템 메시지",
    "chat.message": "메시지",
    "chat.send": "보내기",
    "chat.keys": "Enter로 보내고 Shift + Enter로 줄을 바꿉니다",
    "chat.new": "새 대화",
    "chat.again": "다시 답하기",
    "chat.example.1": "프랑스의 수도는 어디인가요?",
    "chat.example.2": "건강한 생활 습관 세 가지를 목록으로 알려 주세요.",
    "chat.example.3": "비가 무엇인지 두 문장으로 설명해 주세요.",
    "chat.you": "나",
    "chat.none": "대화 템플릿이 있는 모델이 없습니다.",
    "chat.log": "대화 내용",
    "chat.attach": "사진 추가",
    "chat.ready": "준비된 모델이 여기에 나타납니다.",
    "engine.title": "엔진 현황",
    "engine.waiting": "모델이 준비되면 수치가 나타납니다.",
    "engine.running": "배치",
    "engine.queue": "대기열",
    "engine.speed": "토큰/초",
    "engine.prompt_speed": "프롬프트 토큰/초",
    "engine.blocks": "캐시 블록",
    "engine.blocks.text": "전체 {total}개 중 사용 {used}개, 접두사 보관 {cached}개",
    "engine.prefix": "접두사 적중",
    "engine.step": "스텝",
    "engine.first": "첫 토큰 평균",
    "engine.finished": "답변 수",
    "engine.preemptions": "선점됨",
    "engine.errors": "오류",
    "error.network": "서버가 응답하지 않습니다. 서버가 종료되었거나 네트워크가 끊겼을 수 있습니다.",
    "error.retry": "{seconds} 뒤에 다시 시도해 주세요.",
    "error.allowed": "가능한 값: {values}",
    "error.400": "요청에 잘못된 부분이 있습니다.",
    "error.401": "키가 없거나 틀렸습니다.",
    "error.404": "그런 것은 없습니다.",
    "error.413": "너무 큽니다.",
    "error.422": "요청에 잘못된 부분이 있습니다.",
    "error.429": "대기열이 가득 찼습니다.",
    "error.500": "서버에 오류가 있습니다.",
    "error.503": "아직 준비되지 않았습니다.",
    "error.504": "너무 오래 걸렸습니다.",
    "error.stream": "답변이 중간에 끊겼습니다.",
  },
};

const STORED = "coldstream-language";
const listeners = new Set();
let language = stored() ?? navigator.languages.map((tag) => tag.slice(0, 2)).find((tag) => tag in WORDS) ?? "en";

function stored() {
  try {
    const value = localStorage.getItem(STORED);
    return value in WORDS ? value : null;
  } catch {
    return null; // storage is switched off
  }
}

export const keys = (tag) => Object.keys(WORDS[tag]);
export const current = () => language;
export const has = (key) => key in WORDS.en;

export function t(key, values = {}) {
  return WORDS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

export function setLanguage(tag) {
  language = tag;
  try {
    localStorage.setItem(STORED, tag);
  } catch {
    // storage is switched off: the choice holds until the page is closed
  }
  for (const listener of listeners) listener();
}

// Calls back now, and whenever the language changes.
export function inEveryLanguage(listener) {
  listeners.add(listener);
  listener();
}

// Elements with data-t get that sentence as their text.
export function translate(root = document) {
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
}

export function number(value, digits = 0) {
  return new Intl.NumberFormat(language, { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(value);
}

export function percent(fraction) {
  return new Intl.NumberFormat(language, { style: "percent" }).format(fraction);
}

// Decimal units, as networks and stores count them.
export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${number(value, unit > 1 && value < 100 ? 1 : 0)}\u00a0${units[unit]}`;
}

export function seconds(value) {
  if (value < 0.9995) return `${number(value * 1000)}\u00a0ms`;
  if (value < 90) return `${number(value, value < 10 ? 2 : 1)}\u00a0${language === "ko" ? "초" : "s"}`;
  return `${number(value / 60, 1)}\u00a0${language === "ko" ? "분" : "min"}`;
}

// Time that is still to come: whole seconds, since more cannot be promised.
export function left(value) {
  if (value < 90) return `${number(Math.max(1, Math.ceil(value)))}\u00a0${language === "ko" ? "초" : "s"}`;
  return `${number(Math.ceil(value / 60))}\u00a0${language === "ko" ? "분" : "min"}`;
}
